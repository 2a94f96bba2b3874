#!lua flags=no-writes
-- position <id> -> number of the client's ready jobs of its class that go before it, or nil if it is not queued
local f = call('HMGET', job(ARGV[1]), 'queue', 'client', 'service_class', 'follows')
if not f[1] then return false end
if f[4] and f[4] ~= '' then
  ARGV[1] = f[4]
  f = call('HMGET', job(ARGV[1]), 'queue', 'client', 'service_class')
  if not f[1] then return false end
end
return call('ZRANK', q .. 'r:' .. lane_of(f[1], f[3] or 'normal') .. ':' .. f[2], ARGV[1]) or call('ZRANK', q .. 'alone:' .. f[1], ARGV[1])
