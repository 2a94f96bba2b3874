#!lua flags=allow-oom
-- claim <worker> <lease_s> <limit> <queue> ... -> records, now running and leased to the worker, in order
local worker, lease, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local held = q .. 'w:' .. worker
local t = now()

-- The job becomes this worker's; false if its record is gone. Its work is charged once, however often it runs.
local function take(id)
  call('ZREM', q .. 'pending', id)
  local f = call('HMGET', job(id), 'status', 'cost', 'started_at')
  if f[1] ~= 'queued' then return false end
  local attempt = call('HINCRBY', job(id), 'attempt', 1)
  if f[3] == '' then call('HSET', job(id), 'started_at', stamp(t)) end
  call('HSET', job(id), 'status', 'running', 'worker', worker)
  call('ZADD', q .. 'lease', t + lease, id)
  call('SADD', held, id)
  emit(id, 'started')
  return call('HGETALL', job(id)), attempt == 1 and tonumber(f[2]) or 0
end

local function alone()
  local ids = call('SMEMBERS', held)
  return #ids == 1 and tonumber(call('HGET', job(ids[1]), 'failures') or 0) >= ALONE_FROM
end

-- A suspicious job waits for a worker without other jobs. Under constant load none would ever be idle, so one worker
-- at a time is kept from taking more until it is.
local function suspicious(queue)
  local waiting, drain = q .. 'alone:' .. queue, q .. 'drain:' .. queue
  if call('EXISTS', waiting) == 0 then return nil end
  if call('SCARD', held) > 0 then
    local chosen = call('GET', drain)
    if chosen and chosen ~= worker then return nil end
    call('SET', drain, worker, 'PX', math.ceil(lease * 1000))
    return {}
  end
  call('DEL', drain)
  local record = take(call('ZPOPMIN', waiting)[1])
  return record and { record }
end

-- The client of least virtual time in this queue. What it spent in other queues since it entered the ring shows only
-- now: it is put where it belongs, and the next one is looked at.
local function turn(queue)
  local moved = {}
  while true do
    local client, start, shift = head(queue)
    if not client then
      if call('EXISTS', q .. 'alone:' .. queue) == 0 then call('DEL', q .. 'wake:' .. queue) end
      return nil
    end
    local spent = tonumber(call('ZSCORE', q .. 'spent', client) or 0)
    if spent <= start or moved[client] then return { queue = queue, client = client, start = start, shift = shift } end
    call('ZADD', q .. 'ring:' .. queue, spent - shift, client)
    moved[client] = true
  end
end

local function earliest_turn()
  local best
  for i = 4, #ARGV do
    local candidate = turn(ARGV[i])
    if candidate and (not best or candidate.start < best.start) then best = candidate end
  end
  return best
end

-- Takes the first job of the client whose turn it is and moves the client on by what the job will cost.
local function serve(at)
  local ready, ring = q .. 'r:' .. at.queue .. ':' .. at.client, q .. 'ring:' .. at.queue
  local record, cost = false, 0
  local first = call('ZPOPMIN', ready)
  if first[1] then record, cost = take(first[1]) end
  local finish = at.start + (cost or 0)
  call('ZADD', q .. 'spent', finish, at.client)
  if call('EXISTS', ready) == 1 then call('ZADD', ring, finish - at.shift, at.client) else call('ZREM', ring, at.client) end
  if at.start > present() then call('SET', q .. 'vt', at.start) end
  return record
end

if limit < 1 or alone() then return {} end
for i = 4, #ARGV do
  local records = suspicious(ARGV[i])
  if records then return records end
end
local records = {}
while #records < limit do
  local at = earliest_turn()
  if not at then break end
  local record = serve(at)
  if record then records[#records + 1] = record end
end
-- When nothing waits any more, all debts are settled. Until then, who has been overtaken by the present needs no memory.
if call('EXISTS', q .. 'pending') == 0 then
  local most = call('ZRANGE', q .. 'spent', -1, -1, 'WITHSCORES')[2]
  if most and tonumber(most) > present() then call('SET', q .. 'vt', most) end
  call('DEL', q .. 'spent')
elseif #records > 0 then
  call('ZREMRANGEBYSCORE', q .. 'spent', '-inf', present())
end
return records
