-- Stands before every script. KEYS[1] is the shard's name, "{q0}": it routes the script on a Cluster, and every key
-- of the shard begins with it, so all of them share one slot.
local q = KEYS[1] .. ':'
local call = redis.call

local MAX_FAILURES = 5 -- crashes of its worker without progress after which a job is given up
local ALONE_FROM = 2 -- crashes from which on a job shares a worker with nobody
local MAX_LOSSES = 10 -- of the newest crashes the record names worker and time
local MAX_EVENTS = 1000 -- per job, roughly
local MAX_WAKES = 256 -- idle workers that one burst can wake at once
local PRIORITY_US = 600e6 -- of waiting that one step of priority is worth: so a low priority does not starve
local URGENT_S = 10 -- before the latest start of a job with a deadline, at which it goes before all classes
local KEPT_S = 604800 -- for which dead letters are kept, and the names of expired jobs remembered
local HOLD_S = 60 -- after each job of a batch, for which the places of the next ones are kept
local CLASSES = { 'interactive', 'normal', 'batch' } -- served in this order
local RANK = { interactive = 1, normal = 2, batch = 3 }

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

-- A delivery for the job's webhook, if it wants this event. Only the first start is news to a client.
local function deliver(id, kind, data, webhook)
  if kind == 'started' and data.attempt > 1 then return end
  local hook = cjson.decode(webhook)
  for _, wanted in ipairs(hook.events) do
    if wanted == kind then
      local delivery, t = id .. '.' .. kind, now()
      local f = call('HMGET', job(id), 'status', 'images', 'client', 'request_id')
      call('HSET', q .. 'h:' .. delivery, 'job_id', id, 'event', kind, 'url', hook.url, 'at', stamp(t), 'attempt', 0,
        'status', f[1], 'images', f[2], 'client', f[3], 'data', cjson.encode(data),
        'request_id', f[4] or '')
      call('ZADD', q .. 'hooks', t, delivery)
    end
  end
end

local function emit(id, kind, more)
  local f = call('HMGET', job(id), 'steps_done', 'steps_total', 'attempt', 'webhook')
  local data = more or {}
  data.steps_done, data.steps_total, data.attempt = tonumber(f[1]), tonumber(f[2]), tonumber(f[3])
  if f[4] and f[4] ~= '' then deliver(id, kind, data, f[4]) end
  return call('XADD', q .. 'e:' .. id, 'MAXLEN', '~', MAX_EVENTS, '*', 'type', kind, 'data', cjson.encode(data))
end
