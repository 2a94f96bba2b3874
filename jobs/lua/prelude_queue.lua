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

-- A client enters a lane's ring. Who comes back after a pause starts at the present: idling saves nothing up. What it was
-- served ahead of those who still wait here is remembered beside the ring, since their lane may stand still meanwhile.
local function enter(lane, client)
  local _, _, shift = head(lane)
  local spent, lead = call('ZSCORE', q .. 'spent', client), call('ZSCORE', q .. 'lead:' .. lane, client)
  local at = math.max(present(), tonumber(spent or 0)) - shift
  call('ZADD', q .. 'ring:' .. lane, 'NX', math.max(at, tonumber(lead) or at), client)
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
  call('DEL', q .. 'lead:' .. lane)
  call('HDEL', q .. 'work', lane)
  call('HDEL', q .. 'ready', lane)
  call('HDEL', q .. 'passed', lane)
end

-- Counts a job as queued, whether it stands in a lane or follows another job.
local function count_in(id, client, deadline)
  call('SADD', q .. 'pending', id)
  call('HINCRBY', q .. 'queued', client, 1)
  if deadline and deadline ~= '' then call('ZADD', q .. 'deadline', deadline, id) end
end

local function count_out(id, client, timed)
  if timed then call('ZREM', q .. 'deadline', id) end
  if call('SREM', q .. 'pending', id) == 0 or not client then return end
  if call('HINCRBY', q .. 'queued', client, -1) <= 0 then call('HDEL', q .. 'queued', client) end
end

-- Where a job stands: class, score and deadline. They are the best of its own and of all who follow it, since its run is
-- theirs; then the record names them beside its own.
local function place_of(id)
  local f = call('HMGET', job(id), 'as_class', 'as_score', 'as_due', 'service_class', 'score', 'deadline_at')
  return f[1] or f[4] or 'normal', f[2] or f[5], f[3] or f[6] or ''
end

local function best_place(id)
  local f = call('HMGET', job(id), 'service_class', 'score', 'deadline_at')
  local class, score, due = f[1] or 'normal', f[2], f[3] or ''
  for _, follower in ipairs(call('ZRANGE', q .. 'f:' .. id, 0, -1)) do
    f = call('HMGET', job(follower), 'service_class', 'score', 'deadline_at')
    if RANK[f[1] or 'normal'] < RANK[class] then class = f[1] or 'normal' end
    if tonumber(f[2]) < tonumber(score) then score = f[2] end
    if (tonumber(f[3]) or math.huge) < (tonumber(due) or math.huge) then due = f[3] end
  end
  return class, score, due
end

-- Puts a queued job where claim finds it. A job that comes back keeps its score: it stands before everything that
-- still waits at its priority. Suspicious jobs wait apart, for a worker that holds nothing else.
local function enqueue(id)
  local f = call('HMGET', job(id), 'queue', 'client', 'failures', 'predicted_s', 'deadline_at')
  local queue, client = f[1], f[2]
  local class, score, due = place_of(id)
  if tonumber(f[3]) >= ALONE_FROM then
    call('ZADD', q .. 'alone:' .. queue, score, id)
  else
    local lane = lane_of(queue, class)
    call('ZADD', q .. 'r:' .. lane .. ':' .. client, score, id)
    enter(lane, client)
    tally(lane, client, 1, micros(f[4]))
    if due ~= '' then
      call('ZADD', q .. 'slack:' .. queue, tonumber(due) - (tonumber(f[4]) or 0), id)
      call('HINCRBY', q .. 'work', 'promised:' .. queue, micros(f[4]))
    end
  end
  count_in(id, client, f[5])
  call('LPUSH', q .. 'wake:' .. queue, 1)
  call('LTRIM', q .. 'wake:' .. queue, 0, MAX_WAKES - 1)
end

local regroup

-- Takes a queued job out of wherever it waits; the client leaves the ring with its last job. `found` says where it
-- stood, for a job whose record is gone.
local function withdraw(id, found)
  local f = call('HMGET', job(id), 'queue', 'client', 'predicted_s', 'follows', 'deadline_at')
  local queue, client = f[1] or found.queue, f[2] or found.client
  count_out(id, client, f[5] and f[5] ~= '')
  if f[4] then
    call('ZREM', q .. 'f:' .. f[4], id)
    call('HDEL', job(id), 'follows')
    return regroup(f[4])
  end
  local class, _, due = place_of(id)
  local lane = f[1] and lane_of(queue, class) or found.lane
  if not client or call('ZREM', q .. 'r:' .. lane .. ':' .. client, id) == 0 then
    call('ZREM', q .. 'alone:' .. queue, id)
  else
    tally(lane, client, -1, -micros(f[3]))
    if due ~= '' then
      call('ZREM', q .. 'slack:' .. queue, id)
      call('HINCRBY', q .. 'work', 'promised:' .. queue, -micros(f[3]))
      if call('EXISTS', q .. 'slack:' .. queue) == 0 then call('HDEL', q .. 'work', 'promised:' .. queue) end
    end
  end
end

-- Moves a job to the best place of its group, after a follower came or went; one that runs will come back there.
regroup = function(id)
  local class, score, due = best_place(id)
  local was_class, was_score, was_due = place_of(id)
  if class == was_class and score == was_score and due == was_due then return end
  local waits = call('HGET', job(id), 'status') == 'queued'
  if waits then withdraw(id) end
  call('HSET', job(id), 'as_class', class, 'as_score', score, 'as_due', due)
  if waits then enqueue(id) end
end

-- The client's virtual time moves by `work` of its own, which its weight makes small.
local function charge_of(client, work)
  local weight = tonumber(call('HGET', q .. 'weight', client) or 1)
  return math.ceil(work / weight)
end
