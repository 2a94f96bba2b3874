-- Stands before every script. KEYS[1] is the shard's name, "{q0}": it routes the script on a Cluster, and every key
-- of the shard begins with it, so all of them share one slot.
local q = KEYS[1] .. ':'
local call = redis.call

local MAX_FAILURES = 5 -- crashes of its worker after which a job is given up
local ALONE_FROM = 2 -- crashes from which on a job shares a worker with nobody
local MAX_EVENTS = 1000 -- per job, roughly
local MAX_WAKES = 256 -- idle workers that one burst can wake at once
local BAND = 1e13 -- orders per priority: exact in a double for priorities up to 900

-- Seconds of the server; a test may put the time into the clock key.
local function now()
  local fixed = call('GET', q .. 'clock')
  if fixed then return tonumber(fixed) end
  local t = call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end

local function stamp(t)
  return string.format('%.6f', t)
end

local function job(id)
  return q .. 'j:' .. id
end

-- The fence: only the worker that claimed this very attempt, and only while it runs.
local function holds(worker, attempt, id)
  local f = call('HMGET', job(id), 'status', 'worker', 'attempt')
  return f[1] == 'running' and f[2] == worker and f[3] == attempt
end

-- A worker that lost our answer asks again: its own earlier success is told again, nothing is changed.
local function settled_by(worker, attempt, id, status)
  local f = call('HMGET', job(id), 'status', 'worker', 'attempt')
  return f[1] == status and f[2] == worker and f[3] == attempt
end

local function emit(id, kind, more)
  local f = call('HMGET', job(id), 'steps_done', 'steps_total', 'attempt')
  local data = more or {}
  data.steps_done, data.steps_total, data.attempt = tonumber(f[1]), tonumber(f[2]), tonumber(f[3])
  return call('XADD', q .. 'e:' .. id, 'MAXLEN', '~', MAX_EVENTS, '*', 'type', kind, 'data', cjson.encode(data))
end

-- Virtual time counts predicted work. The present is where the client served last stood before it was charged.
local function present()
  return tonumber(call('GET', q .. 'vt') or 0)
end

-- The first client of a queue's ring, with its virtual time and what was added to its score to get it. A queue that
-- nobody served for a while lags behind the present, and is moved there as a whole: its clients keep their order.
local function head(queue)
  local shift = tonumber(call('HGET', q .. 'shift', queue) or 0)
  local first = call('ZRANGE', q .. 'ring:' .. queue, 0, 0, 'WITHSCORES')
  if not first[1] then return nil, 0, shift end
  local lag = present() - (tonumber(first[2]) + shift)
  if lag > 0 then
    shift = shift + lag
    call('HSET', q .. 'shift', queue, shift)
  end
  return first[1], tonumber(first[2]) + shift, shift
end

-- Puts a queued job where claim finds it. A job that comes back keeps its score: it stands before everything that
-- still waits at its priority. Suspicious jobs wait apart, for a worker that holds nothing else.
local function enqueue(id)
  local f = call('HMGET', job(id), 'queue', 'client', 'score', 'failures', 'created_at')
  local queue, client, score = f[1], f[2], f[3]
  if tonumber(f[4]) >= ALONE_FROM then
    call('ZADD', q .. 'alone:' .. queue, score, id)
  else
    call('ZADD', q .. 'r:' .. queue .. ':' .. client, score, id)
    -- Who comes back after a pause starts at the present: idling saves nothing up.
    local _, _, shift = head(queue)
    local spent = tonumber(call('ZSCORE', q .. 'spent', client) or 0)
    call('ZADD', q .. 'ring:' .. queue, 'NX', math.max(present(), spent) - shift, client)
  end
  call('ZADD', q .. 'pending', f[5], id)
  call('LPUSH', q .. 'wake:' .. queue, 1)
  call('LTRIM', q .. 'wake:' .. queue, 0, MAX_WAKES - 1)
end

-- Takes a queued job out of its queue; the client leaves the ring with its last job.
local function withdraw(id)
  local f = call('HMGET', job(id), 'queue', 'client')
  local ready = q .. 'r:' .. f[1] .. ':' .. f[2]
  call('ZREM', q .. 'pending', id)
  call('ZREM', q .. 'alone:' .. f[1], id)
  call('ZREM', ready, id)
  if call('EXISTS', ready) == 0 then call('ZREM', q .. 'ring:' .. f[1], f[2]) end
end

-- Ends the worker's right to a job.
local function free(id)
  call('ZREM', q .. 'lease', id)
  call('SREM', q .. 'w:' .. call('HGET', job(id), 'worker'), id)
  call('DEL', q .. 'p:' .. id)
end

-- The only way into a terminal state: state, last event and expiry in one move.
local function settle(id, status, retention)
  free(id)
  call('HSET', job(id), 'status', status, 'finished_at', stamp(now()))
  local failure = call('HGET', job(id), 'error')
  emit(id, status, { error = failure ~= '' and cjson.decode(failure) or nil })
  call('EXPIRE', job(id), retention)
  call('EXPIRE', q .. 'e:' .. id, retention)
end

-- Back into the queue, or canceled if that was wished meanwhile. The work of this attempt is gone, and says so.
local function give_back(id, reason, retention)
  if call('HGET', job(id), 'cancel_requested') == '1' then return settle(id, 'canceled', retention) end
  free(id)
  call('HSET', job(id), 'status', 'queued', 'worker', '', 'steps_done', 0)
  emit(id, 'requeued', { reason = reason })
  enqueue(id)
end
