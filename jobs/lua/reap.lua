#!lua flags=allow-oom
-- reap <limit> <retention_s> <schema> <error json> -> number of jobs whose lease had run out and that were moved on
local limit, retention, schema, failure = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4]
local t = now()

local function move_on(id)
  local failures = call('HINCRBY', job(id), 'failures', 1)
  if failures < MAX_FAILURES or call('HGET', job(id), 'cancel_requested') == '1' then
    return give_back(id, 'worker_lost', retention)
  end
  call('HSET', job(id), 'error', failure)
  settle(id, 'failed', retention)
end

local moved, passed = 0, 0
while moved < limit do
  local id = call('ZRANGEBYSCORE', q .. 'lease', '-inf', t, 'LIMIT', passed, 1)[1]
  if not id then break end
  local f = call('HMGET', job(id), 'status', 'schema')
  if f[1] ~= 'running' then
    call('ZREM', q .. 'lease', id) -- the record is gone
  elseif tonumber(f[2]) > schema then
    passed = passed + 1 -- processes that know this schema will see to it
  else
    move_on(id)
    moved = moved + 1
  end
end
return moved
