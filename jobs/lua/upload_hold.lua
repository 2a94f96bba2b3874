#!lua
-- upload_hold <client> <key> <most> <ttl_s> -> {'held' | 'known' | 'leaving'} | {'full', seconds}
-- A place for a picture that is about to be stored, one of the `most` of its client. Whoever holds it says what became of it, with
-- upload_keep or upload_drop. 'known': it is there already. 'leaving': it is being deleted at this moment, come again at once.
local client, key, most, ttl = unpack(ARGV, 1, 4)
local own, holders, t = q .. 'up:' .. client, q .. 'uh:' .. client, now()
if call('EXISTS', q .. 'ux:' .. client .. ':' .. key) == 1 then return { 'leaving' } end
call('ZREMRANGEBYSCORE', own, '-inf', stamp(t))
if not call('ZSCORE', own, key) then
  if call('ZCARD', own) >= tonumber(most) then
    return { 'full', math.max(1, math.ceil(tonumber(call('ZRANGE', own, 0, 0, 'WITHSCORES')[2]) - t)) }
  end
  call('HSET', holders, key, 0)
elseif call('HEXISTS', holders, key) == 0 then
  return { 'known' }
end
call('ZADD', own, stamp(t + tonumber(ttl)), key)
call('HINCRBY', holders, key, 1)
for _, kept in ipairs({ own, holders }) do call('EXPIRE', kept, math.ceil(tonumber(ttl)) + 1) end
return { 'held' }
