#!lua flags=no-writes
-- outlook <id> -> {predicted seconds, position, seconds until it will be done} of a queued job, or nil for others
-- A job that follows another is done when that one is.
local id = ARGV[1]
local f = call('HMGET', job(id), 'status', 'follows')
if f[1] ~= 'queued' then return false end
if f[2] and f[2] ~= '' then id = f[2] end
f = call('HMGET', job(id), 'status', 'queue', 'service_class', 'client', 'score', 'predicted_s', 'deadline_at', 'steps_done', 'steps_total')
local queue, class, client, predicted = f[2], f[3] or 'normal', f[4], tonumber(f[6]) or 0
if f[1] ~= 'queued' then
  local left = f[1] == 'running' and 1 - tonumber(f[8]) / math.max(tonumber(f[9]), 1) or 0
  return { stamp(predicted), 0, stamp(predicted * left) }
end
local deadline = f[7] ~= nil and f[7] ~= false and f[7] ~= ''
local position, eta = estimate(queue, class, client, tonumber(f[5]), predicted, deadline)
if deadline then eta = eta - predicted / workers_of(queue) end -- its own work is among what was promised
local apart = call('ZRANK', q .. 'alone:' .. queue, id)
return { stamp(predicted), apart or position, stamp(math.max(eta, predicted)) }
