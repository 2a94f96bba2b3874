#!lua flags=no-writes
-- outlook <id> -> {predicted seconds, position, seconds until it will be done} of a queued job, or nil for others
-- A job that follows another is done when that one is.
local f = call('HMGET', job(ARGV[1]), 'status', 'follows')
if f[1] ~= 'queued' then return false end
local predicted, position, eta = remaining(f[2] or ARGV[1])
return { stamp(predicted), position, stamp(eta) }
