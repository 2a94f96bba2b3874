#!lua flags=allow-oom
-- hooks_settle <worker> <id> <outcome> <retry_in_s or ''> -> 1, or 0 to whoever does not hold the delivery
-- The outcome is empty when it was delivered, else the reason; without a time to retry the delivery is dead.
local worker, id, outcome, retry_in = unpack(ARGV)
local MAX_DEAD = 10000
local key, dead, t = q .. 'h:' .. id, q .. 'hooksdead', now()
if call('HGET', key, 'worker') ~= worker or not call('ZSCORE', q .. 'hooks', id) then return 0 end
if outcome == '' then
  call('DEL', key)
  call('ZREM', q .. 'hooks', id)
  return 1
end
call('HSET', key, 'reason', outcome, 'worker', '')
if retry_in ~= '' then return call('ZADD', q .. 'hooks', t + tonumber(retry_in), id) + 1 end
call('ZREM', q .. 'hooks', id)
call('ZADD', dead, t, id)
call('EXPIRE', key, KEPT_S)
call('ZREMRANGEBYSCORE', dead, '-inf', t - KEPT_S)
for _, oldest in ipairs(call('ZRANGE', dead, 0, -MAX_DEAD - 1)) do
  call('DEL', q .. 'h:' .. oldest)
  call('ZREM', dead, oldest)
end
return 1
