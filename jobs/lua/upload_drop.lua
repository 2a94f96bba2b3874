#!lua flags=allow-oom
-- upload_drop <client> <key> <held> -> {'yours'} | {'kept'} | {'leaving'}
-- Of a request that was refused; `held` is 1 where it held the picture, 0 where that was there before. 'yours': nobody wants it, and it is
-- to be deleted now, with upload_forget or upload_stay to follow. 'kept': others hold it, or it is kept. 'leaving': it is being deleted
-- at this moment, come again at once: what was stored meanwhile would count nowhere.
local client, key, held = unpack(ARGV, 1, 3)
local own, holders, leaving = q .. 'up:' .. client, q .. 'uh:' .. client, q .. 'ux:' .. client .. ':' .. key
if call('EXISTS', leaving) == 1 then return { 'leaving' } end
if call('HEXISTS', holders, key) == 1 then
  if held == '0' or call('HINCRBY', holders, key, -1) > 0 then return { 'kept' } end
  call('HDEL', holders, key)
elseif call('ZSCORE', own, key) then
  return { 'kept' }
end
call('SET', leaving, 1, 'EX', 60) -- should its deleter die
return { 'yours' }
