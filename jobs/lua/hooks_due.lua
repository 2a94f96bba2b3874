#!lua flags=allow-oom
-- hooks_due <worker> <lease_s> <limit> -> {id, fields} of deliveries that are due, now this worker's until its lease ends
local worker, lease, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local t, taken = now(), {}
for _, id in ipairs(call('ZRANGEBYSCORE', q .. 'hooks', '-inf', t, 'LIMIT', 0, limit)) do
  local key = q .. 'h:' .. id
  if call('EXISTS', key) == 0 then
    call('ZREM', q .. 'hooks', id) -- the delivery is gone
  else
    call('HINCRBY', key, 'attempt', 1)
    call('HSET', key, 'worker', worker)
    call('ZADD', q .. 'hooks', t + lease, id)
    taken[#taken + 1] = { id, call('HGETALL', key) }
  end
end
return taken
