#!lua
-- upload_hold <client> <most> <ttl_s> <key> ... -> {'held', {those of the keys that are not there already}} | {'leaving'} | {'full', seconds}
-- Places for pictures that are about to be stored, for all or for none, of the `most` of their client. Whoever holds them says what
-- became of each, with upload_keep or upload_drop. 'leaving': one is being deleted at this moment, come again at once.
local client, most, ttl = unpack(ARGV, 1, 3)
local own, holders, t = q .. 'up:' .. client, q .. 'uh:' .. client, now()
call('ZREMRANGEBYSCORE', own, '-inf', stamp(t))
local fresh, held = {}, {}
for n = 4, #ARGV do
  local key = ARGV[n]
  if call('EXISTS', q .. 'ux:' .. client .. ':' .. key) == 1 then return { 'leaving' } end
  if not call('ZSCORE', own, key) then
    table.insert(fresh, key)
  elseif call('HEXISTS', holders, key) == 1 then
    table.insert(held, key)
  end
end
local over = call('ZCARD', own) + #fresh - tonumber(most)
if #fresh > 0 and over > 0 then
  local ends = call('ZRANGE', own, over - 1, over - 1, 'WITHSCORES')[2] or t + tonumber(ttl) -- more than there are places, ever
  return { 'full', math.max(1, math.ceil(tonumber(ends) - t)) }
end
for _, key in ipairs(fresh) do
  call('HSET', holders, key, 0)
  table.insert(held, key)
end
for _, key in ipairs(held) do
  call('ZADD', own, stamp(t + tonumber(ttl)), key)
  call('HINCRBY', holders, key, 1)
end
for _, kept in ipairs({ own, holders }) do
  if #held > 0 then call('EXPIRE', kept, math.ceil(tonumber(ttl)) + 1) end
end
return { 'held', held }
