#!lua flags=no-writes
-- position <id> -> number of the client's ready jobs that go before it, or nil if it is not queued
local id = ARGV[1]
local f = call('HMGET', job(id), 'queue', 'client')
if not f[1] then return false end
return call('ZRANK', q .. 'r:' .. f[1] .. ':' .. f[2], id) or call('ZRANK', q .. 'alone:' .. f[1], id)
