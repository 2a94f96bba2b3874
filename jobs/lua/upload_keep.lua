#!lua
-- upload_keep <client> <key> <ttl_s> -> when it will be forgotten. The picture is in the store; sent again, it is kept for longer.
local client, key, ttl = unpack(ARGV, 1, 3)
local own, until_ = q .. 'up:' .. client, stamp(now() + tonumber(ttl))
call('ZADD', own, until_, key)
call('EXPIRE', own, math.ceil(tonumber(ttl)) + 1)
call('HDEL', q .. 'uh:' .. client, key)
return until_
