#!lua flags=allow-oom
-- claim <worker> <lease_s> <limit> <elsewhere> <queue> ... -> records, now running and leased to the worker, in order;
-- nil if the worker must be, or become, alone with a job of this shard. It holds `elsewhere` jobs of other shards.
local worker, lease, limit, elsewhere = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local PATIENCE = 8 -- turns of better lanes in a row, after which a lane gets one
local LOOKS = { 4, 8, 16, 64, 256 } -- clients looked at in one claim, round after round
local held = q .. 'w:' .. worker
local t = now()

local lanes = {} -- of all models of this worker, best class first
for rank, class in ipairs(CLASSES) do
  for i = 5, #ARGV do lanes[#lanes + 1] = { name = lane_of(ARGV[i], class), queue = ARGV[i], rank = rank } end
end

-- The job becomes this worker's; false if its record is gone. Its work is charged once, however often it runs; of what it
-- inherited from a canceled job only the rest is.
local function take(id, found)
  withdraw(id, found)
  local f = call('HMGET', job(id), 'status', 'predicted_s', 'charged', 'started_at', 'client', 'queue', 'attempt', 'inherited',
    'steps_total')
  if f[1] ~= 'queued' then return false, 0 end
  local steps, inherited = tonumber(call('HGET', q .. 'k:' .. id, 'steps') or 0), tonumber(f[8] or 0)
  if steps < inherited then -- the time of its checkpoint was over
    inherited = steps
    call('HSET', job(id), 'inherited', steps)
  end
  local work = math.floor(micros(f[2]) * (1 - inherited / math.max(tonumber(f[9]), 1)))
  local charge = f[3] and 0 or charge_of(f[5], math.max(work, 1))
  call('HSET', job(id), 'status', 'running', 'worker', worker, 'attempt', tonumber(f[7]) + 1, 'charged', f[3] or charge,
    'started_at', f[4] ~= '' and f[4] or stamp(t), 'steps_done', steps)
  call('HINCRBY', q .. 'work', 'running:' .. f[6], micros(f[2]))
  call('ZADD', q .. 'lease', t + lease, id)
  call('SADD', held, id)
  emit(id, 'started')
  return call('HGETALL', job(id)), charge
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
  if call('SCARD', held) + elsewhere > 0 then
    local chosen = call('GET', drain)
    if chosen and chosen ~= worker then return nil end
    call('SET', drain, worker, 'PX', math.ceil(lease * 1000))
    return false
  end
  call('DEL', drain)
  local record = take(call('ZPOPMIN', waiting)[1], { queue = queue, lane = queue })
  return record and { record } or nil
end

-- The client of least virtual time in this lane. What clients spent in other lanes since they entered the ring shows only
-- now: they are put where they belong, many at a time. Where too many are, so that a claim stays short, the first one known
-- so far is served and the rest is left to the next claims; the present does not move by that.
local function turn(lane)
  local ring = q .. 'ring:' .. lane.name
  local _, _, shift = head(lane.name)
  local first, start
  for _, count in ipairs(LOOKS) do
    local found, clients, late = call('ZRANGE', ring, 0, count - 1, 'WITHSCORES'), {}, {}
    for i = 1, #found, 2 do clients[#clients + 1] = found[i] end
    first, start = found[1], tonumber(found[2]) + shift
    for i, spent in ipairs(call('ZMSCORE', q .. 'spent', unpack(clients))) do
      if spent and tonumber(spent) > tonumber(found[2 * i]) + shift then
        late[#late + 1], late[#late + 2] = tonumber(spent) - shift, clients[i]
      end
    end
    if late[2] ~= first then return { lane = lane, client = first, start = start, shift = shift, vt = true } end
    call('ZADD', ring, unpack(late))
    start = late[1] + shift
  end
  return { lane = lane, client = first, start = start, shift = shift }
end

-- The queued job that must start first to be in time, if that is soon.
local function urgent()
  local id, least, place
  for i = 5, #ARGV do
    local first = call('ZRANGE', q .. 'slack:' .. ARGV[i], 0, 0, 'WITHSCORES')
    if first[1] and tonumber(first[2]) <= t + URGENT_S and (not least or tonumber(first[2]) < least) then
      id, least, place = first[1], tonumber(first[2]), i
    end
  end
  if not id then return nil end
  local client = call('HGET', job(id), 'client')
  if not client then
    call('ZREM', q .. 'slack:' .. ARGV[place], id) -- the record is gone
    return urgent()
  end
  local name = lane_of(ARGV[place], (place_of(id)))
  for _, lane in ipairs(lanes) do
    if lane.name == name then
      local _, _, shift = head(name)
      local at = tonumber(call('ZSCORE', q .. 'ring:' .. name, client) or 0) + shift
      local start = math.max(at, tonumber(call('ZSCORE', q .. 'spent', client) or 0), present())
      return { lane = lane, client = client, start = start, shift = shift, id = id }
    end
  end
end

-- Whose turn it is: a lane that was passed over too often, the urgent, the best class; there the least virtual time.
-- All others that wait have been passed over once more.
local function choose()
  local waiting, overdue = {}, nil
  for _, lane in ipairs(lanes) do
    if call('EXISTS', q .. 'ring:' .. lane.name) == 1 then
      waiting[#waiting + 1] = lane
      lane.passed = tonumber(call('HGET', q .. 'passed', lane.name) or 0)
      if lane.passed >= PATIENCE and (not overdue or lane.passed > overdue.passed) then overdue = lane end
    end
  end
  if #waiting == 0 then return nil end
  local best = overdue and turn(overdue) or urgent()
  local candidates = best and {} or waiting
  for _, lane in ipairs(candidates) do
    if lane.rank > candidates[1].rank then break end
    local candidate = turn(lane)
    if not best or candidate.start < best.start then best = candidate end
  end
  for _, lane in ipairs(waiting) do
    if lane.name == best.lane.name then
      if lane.passed > 0 then call('HDEL', q .. 'passed', lane.name) end
    elseif best.id or lane.rank > best.lane.rank then
      call('HINCRBY', q .. 'passed', lane.name, 1)
    end
  end
  return best
end

-- Takes the job whose turn it is and moves its client on by what the job will cost.
local function serve(at)
  local lane = at.lane
  local id = at.id or call('ZRANGE', q .. 'r:' .. lane.name .. ':' .. at.client, 0, 0)[1]
  local record, charge = take(id, { queue = lane.queue, lane = lane.name, client = at.client })
  local finish, lead = at.start + charge, q .. 'lead:' .. lane.name
  call('ZADD', q .. 'spent', finish, at.client)
  call('ZADD', q .. 'ring:' .. lane.name, 'XX', finish - at.shift, at.client)
  if call('EXISTS', q .. 'ring:' .. lane.name) == 1 then
    call('ZADD', lead, finish - at.shift, at.client)
    call('ZREMRANGEBYSCORE', lead, '-inf', present() - at.shift)
  end
  if at.vt and at.start > present() then call('SET', q .. 'vt', at.start) end
  return record
end

local function forget_wakes()
  for i = 5, #ARGV do
    local left = call('EXISTS', q .. 'alone:' .. ARGV[i])
    for _, class in ipairs(CLASSES) do left = left + call('EXISTS', q .. 'ring:' .. lane_of(ARGV[i], class)) end
    if left == 0 then call('DEL', q .. 'wake:' .. ARGV[i]) end
  end
end

if limit < 1 then return {} end
if alone() then return false end
for i = 5, #ARGV do
  local records = suspicious(ARGV[i])
  if records ~= nil then return records end
end
local records = {}
while #records < limit do
  local at = choose()
  if not at then
    forget_wakes()
    break
  end
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
