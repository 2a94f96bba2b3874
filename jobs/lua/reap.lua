#!lua flags=allow-oom
-- reap <limit> <retention_s> <schema> <others> <lost_error> <deadline_error> -> number of jobs that were moved on (their
-- lease had run out, or their deadline passed while they waited), and of those that wait. In `others` more shards jobs wait.
local limit, retention, schema, others, lost, late = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]
local t = now()
if others ~= '0' then call('SET', q .. 'others', others, 'EX', OTHERS_S) end

local function note_loss(id)
  local f = call('HMGET', job(id), 'losses', 'worker', 'attempt')
  local losses = cjson.decode(f[1] and f[1] ~= '' and f[1] or '[]')
  losses[#losses + 1] = { worker = f[2], attempt = tonumber(f[3]), at = t }
  if #losses > MAX_LOSSES then table.remove(losses, 1) end
  call('HSET', job(id), 'losses', cjson.encode(losses))
end

local function bury(id)
  call('ZADD', q .. 'dead', t, id)
  call('EXPIRE', job(id), math.max(tonumber(retention), KEPT_S))
end

local function lose(id)
  note_loss(id)
  local failures = call('HINCRBY', job(id), 'failures', 1)
  if failures < MAX_FAILURES or call('HGET', job(id), 'cancel_requested') == '1' then
    return give_back(id, 'worker_lost', retention)
  end
  local followers = call('ZRANGE', q .. 'f:' .. id, 0, -1)
  call('HSET', job(id), 'error', lost)
  settle(id, 'failed', retention)
  call('ZREMRANGEBYSCORE', q .. 'dead', '-inf', t - KEPT_S)
  bury(id)
  for _, follower in ipairs(followers) do -- they share its end, its reasons, and that it can be retried
    call('HSET', job(follower), 'losses', call('HGET', job(id), 'losses'))
    bury(follower)
  end
end

local function expire(id)
  withdraw(id)
  hand_over(id) -- those who asked for the same may have more time
  call('HSET', job(id), 'error', late)
  settle(id, 'failed', retention)
end

-- Records of a newer schema are left to processes that know it. Who follows a job that runs, waits no more.
local function move_on(index, status, move, moved)
  local passed = 0
  while moved < limit do
    local id = call('ZRANGEBYSCORE', q .. index, '-inf', t, 'LIMIT', passed, 1)[1]
    if not id then break end
    local f = call('HMGET', job(id), 'status', 'schema', 'follows')
    if f[1] ~= status then
      call('ZREM', q .. index, id) -- the record is gone
    elseif tonumber(f[2]) > schema or (f[3] and call('HGET', job(f[3]), 'status') == 'running') then
      passed = passed + 1
    else
      move(id)
      moved = moved + 1
    end
  end
  return moved
end

return { move_on('deadline', 'queued', expire, move_on('lease', 'running', lose, 0)), call('SCARD', q .. 'pending') }
