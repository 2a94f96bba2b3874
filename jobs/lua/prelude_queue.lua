-- Where jobs wait, and whose turn it is. Work and virtual time are whole microseconds of U-Net time, so that they add
-- and compare exactly.

-- A lane holds the ready jobs of one model and class; that of the normal class has the model's own name.
local function lane_of(queue, class)
  return class == 'normal' and queue or queue .. '@' .. class
end

local function micros(seconds)
  return math.floor((tonumber(seconds) or 0) * 1e6 + 0.5)
end

-- Microseconds of the server, but never the same twice: the order of submit.
local function next_place()
  return math.max(tonumber(call('GET', q .. 'seq') or 0) + 1, math.floor(now() * 1e6))
end

-- Virtual time counts predicted work. The present is where the client served last stood before it was charged.
local function present()
  return tonumber(call('GET', q .. 'vt') or 0)
end

-- The first client of a lane's ring, with its virtual time and what was added to its score to get it. A lane that
-- nobody served for a while lags behind the present, and is moved there as a whole: its clients keep their order.
local function head(lane)
  local shift = tonumber(call('HGET', q .. 'shift', lane) or 0)
  local first = call('ZRANGE', q .. 'ring:' .. lane, 0, 0, 'WITHSCORES')
  if not first[1] then return nil, 0, shift end
  local lag = present() - (tonumber(first[2]) + shift)
  if lag > 0 then
    shift = shift + lag
    call('HSET', q .. 'shift', lane, shift)
  end
  return first[1], tonumber(first[2]) + shift, shift
end

-- What waits in a lane, in all and of each client: jobs and work. What is empty is forgotten, and errors with it.
local function tally(lane, client, count, work)
  call('HINCRBY', q .. 'ready', lane, count)
  call('HINCRBY', q .. 'work', lane, work)
  call('HINCRBY', q .. 'work', lane .. ':' .. client, work)
  if count > 0 or call('EXISTS', q .. 'r:' .. lane .. ':' .. client) == 1 then return end
  call('HDEL', q .. 'work', lane .. ':' .. client)
  call('ZREM', q .. 'ring:' .. lane, client)
  if call('EXISTS', q .. 'ring:' .. lane) == 1 then return end
  call('HDEL', q .. 'work', lane)
  call('HDEL', q .. 'ready', lane)
  call('HDEL', q .. 'passed', lane)
end

-- Counts a job as queued, whether it stands in a lane or follows another job.
local function count_in(id, client, created_at, deadline)
  call('ZADD', q .. 'pending', created_at, id)
  call('HINCRBY', q .. 'queued', client, 1)
  if deadline and deadline ~= '' then call('ZADD', q .. 'deadline', deadline, id) end
end

local function count_out(id, client, timed)
  if timed then call('ZREM', q .. 'deadline', id) end
  if call('ZREM', q .. 'pending', id) == 0 or not client then return end
  if call('HINCRBY', q .. 'queued', client, -1) <= 0 then call('HDEL', q .. 'queued', client) end
end

-- Puts a queued job where claim finds it. A job that comes back keeps its score: it stands before everything that
-- still waits at its priority. Suspicious jobs wait apart, for a worker that holds nothing else.
local function enqueue(id)
  local f = call('HMGET', job(id), 'queue', 'client', 'score', 'failures', 'created_at', 'service_class', 'predicted_s', 'deadline_at')
  local queue, client, score, deadline = f[1], f[2], f[3], f[8] or ''
  if tonumber(f[4]) >= ALONE_FROM then
    call('ZADD', q .. 'alone:' .. queue, score, id)
  else
    local lane = lane_of(queue, f[6] or 'normal')
    call('ZADD', q .. 'r:' .. lane .. ':' .. client, score, id)
    -- Who comes back after a pause starts at the present: idling saves nothing up.
    local _, _, shift = head(lane)
    local spent = tonumber(call('ZSCORE', q .. 'spent', client) or 0)
    call('ZADD', q .. 'ring:' .. lane, 'NX', math.max(present(), spent) - shift, client)
    tally(lane, client, 1, micros(f[7]))
    if deadline ~= '' then
      call('ZADD', q .. 'slack:' .. queue, tonumber(deadline) - (tonumber(f[7]) or 0), id)
      call('HINCRBY', q .. 'work', 'promised:' .. queue, micros(f[7]))
    end
  end
  count_in(id, client, f[5], deadline)
  call('LPUSH', q .. 'wake:' .. queue, 1)
  call('LTRIM', q .. 'wake:' .. queue, 0, MAX_WAKES - 1)
end

-- Takes a queued job out of wherever it waits; the client leaves the ring with its last job. `found` says where it
-- stood, for a job whose record is gone.
local function withdraw(id, found)
  local f = call('HMGET', job(id), 'queue', 'client', 'service_class', 'predicted_s', 'follows', 'deadline_at')
  local queue, client = f[1] or found.queue, f[2] or found.client
  local lane = f[1] and lane_of(queue, f[3] or 'normal') or found.lane
  local timed = f[6] and f[6] ~= ''
  count_out(id, client, timed)
  if f[5] and f[5] ~= '' then
    call('ZREM', q .. 'f:' .. f[5], id)
    call('HDEL', job(id), 'follows')
  elseif not client or call('ZREM', q .. 'r:' .. lane .. ':' .. client, id) == 0 then
    call('ZREM', q .. 'alone:' .. queue, id)
  else
    tally(lane, client, -1, -micros(f[4]))
    if timed then
      call('ZREM', q .. 'slack:' .. queue, id)
      call('HINCRBY', q .. 'work', 'promised:' .. queue, -micros(f[4]))
      if call('EXISTS', q .. 'slack:' .. queue) == 0 then call('HDEL', q .. 'work', 'promised:' .. queue) end
    end
  end
end

-- The client's virtual time moves by `work` of its own, which its weight makes small.
local function charge_of(client, work)
  local weight = tonumber(call('HGET', q .. 'weight', client) or 1)
  return math.ceil(work / weight)
end
