#!lua flags=allow-oom
-- upload_drop <client> <key> -> 1 where the picture is to be deleted now, with upload_forget or upload_stay to follow; 0 where others hold it, or it is kept
local client, key = unpack(ARGV, 1, 2)
local holders = q .. 'uh:' .. client
if call('HEXISTS', holders, key) == 0 or call('HINCRBY', holders, key, -1) > 0 then return 0 end
call('HDEL', holders, key)
call('SET', q .. 'ux:' .. client .. ':' .. key, 1, 'EX', 60) -- should its deleter die
return 1
