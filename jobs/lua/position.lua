#!lua flags=no-writes
-- position <id> -> number of the client's ready jobs of its class that go before it, or nil if it is not queued
local id = call('HGET', job(ARGV[1]), 'follows') or ARGV[1]
local f = call('HMGET', job(id), 'queue', 'client')
if not f[1] then return false end
return call('ZRANK', q .. 'r:' .. lane_of(f[1], (place_of(id))) .. ':' .. f[2], id) or call('ZRANK', q .. 'alone:' .. f[1], id)
