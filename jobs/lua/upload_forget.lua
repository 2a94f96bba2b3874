#!lua flags=allow-oom
-- upload_forget <client> <key> -> nothing. The picture is in the store no longer.
local client, key = unpack(ARGV, 1, 2)
call('ZREM', q .. 'up:' .. client, key)
call('HDEL', q .. 'uh:' .. client, key)
call('DEL', q .. 'ux:' .. client .. ':' .. key)
