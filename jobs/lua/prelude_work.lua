-- What a job will cost, and when it will be done.

local UNKNOWN_COST = 1e-6 -- seconds per pixel of one U-Net evaluation, until a worker has measured it

-- U-Net seconds of `steps` evaluations: measured at this size, or by the pixel at the model's other sizes.
local function predict(queue, size, steps)
  local known = call('HMGET', q .. 'cost', queue .. ':' .. size, queue)
  local width, height = string.match(size, '^(%d+)x(%d+)$')
  local pixels = math.max(tonumber(width) * tonumber(height), 1)
  local each = tonumber(known[1]) or pixels * (tonumber(known[2]) or UNKNOWN_COST)
  return math.max(tonumber(steps), 1) * each
end

local OTHERS_S = 5 -- for which is believed in how many other shards jobs wait

-- Among how many shards a worker is shared.
local function sharing()
  return 1 + tonumber(call('GET', q .. 'others') or 0)
end

-- How many workers of a model this shard has, in parts of their time.
local function workers_of(queue)
  return math.max(call('ZCOUNT', q .. 'at:' .. queue, '(' .. stamp(now()), '+inf'), 1) / sharing()
end

-- Seconds until a tenth of so much work is done: when it is worth to come again.
local function retry_after(queue, work)
  return math.ceil(math.min(math.max(work / 1e6 / workers_of(queue) / 10, 1), 3600))
end

-- All the work that waits for a model.
local function backlog(queue)
  local sum = 0
  for _, class in ipairs(CLASSES) do sum = sum + tonumber(call('HGET', q .. 'work', lane_of(queue, class)) or 0) end
  return sum
end

-- Places that are kept for batches whose jobs are on their way: in all, and of this client.
local function kept_free(client)
  local all, own = 0, 0
  for _, batch in ipairs(call('ZRANGEBYSCORE', q .. 'filling', '(' .. stamp(now()), '+inf')) do
    local f = call('HMGET', q .. 'b:' .. batch, 'left', 'client')
    all = all + tonumber(f[1] or 0)
    if f[2] == client then own = own + tonumber(f[1] or 0) end
  end
  return all, own
end

-- The refusal where there is no room for so many jobs more.
local function full(queue, class, client, max_queued, max_per_client, count)
  local all, own = kept_free(client)
  if call('SCARD', q .. 'pending') + all + count > tonumber(max_queued) then
    return { 'full', retry_after(queue, backlog(queue)) }
  end
  if tonumber(call('HGET', q .. 'queued', client) or 0) + own + count <= tonumber(max_per_client) then return nil end
  local lane = lane_of(queue, class)
  local work = tonumber(call('HGET', q .. 'work', lane .. ':' .. client) or 0)
  return { 'full', retry_after(queue, work * math.max(call('ZCARD', q .. 'ring:' .. lane), 1)), 'client' }
end

-- GCRA: the time at which the client will have used up its burst. Only what is accepted moves it, by as many as it counts: a batch
-- comes in where one job would, and is paid for afterwards.
local function limited(client, rate, burst, count)
  if tonumber(rate) <= 0 then return nil end
  local each, bucket, t = 1 / tonumber(rate), q .. 'rate:' .. client, now()
  local full_at = math.max(tonumber(call('GET', bucket) or 0), t)
  local wait = full_at + each - t - math.max(tonumber(burst), 1) * each
  if wait > 1e-6 then return { 'limited', math.ceil(wait) } end
  full_at = full_at + count * each
  return nil, function() call('SET', bucket, stamp(full_at), 'PX', math.ceil((full_at - t) * 1000) + 1000) end
end

local DAY_S = 86400

-- Pictures of the day, in UTC. Those that are shared are drawn once and count once.
local function spent(client, per_day, pictures)
  if tonumber(per_day) <= 0 then return nil end
  local t = now()
  local day = math.floor(t / DAY_S)
  local counter = q .. 'day:' .. client .. ':' .. day
  if tonumber(call('GET', counter) or 0) + tonumber(pictures) > tonumber(per_day) then
    return { 'spent', math.ceil((day + 1) * DAY_S - t) }
  end
  return nil, function()
    call('INCRBY', counter, pictures)
    call('EXPIRE', counter, DAY_S)
  end
end

-- A line of a batch shares pictures after all: the batch was charged for them as a whole.
local function unspend(client, pictures)
  local counter = q .. 'day:' .. client .. ':' .. math.floor(now() / DAY_S)
  if tonumber(call('GET', counter) or 0) >= tonumber(pictures) then call('DECRBY', counter, pictures) end
end

-- Seconds that a job spends with a worker, which shares its device among all it holds. Where others wait, slots that
-- become free are filled again; where none do, it is the last to be left. `own` is the work of a job that runs already.
local function residence(queue, left, others_wait, own)
  local held = sharing() * call('ZCARD', q .. 'lease') / math.max(call('ZCOUNT', q .. 'beats', '(' .. stamp(now()), '+inf'), 1)
  if others_wait then return left * math.max(held, 1) end
  local running = math.max(tonumber(call('HGET', q .. 'work', 'running:' .. queue) or 0) / 1e6 - (own or 0), 0)
  return left + math.min(left * math.max(held - (own and 1 or 0), 0), running / 2 / workers_of(queue))
end

-- How many of the client's ready jobs go before one of this score, and in how many seconds it will be done.
-- Before it: better classes, its client's own work, as much work of each other client. A job with a deadline is urgent
-- in time: it passes its own client's work and all classes, but not what was promised before.
local function estimate(queue, class, client, score, predicted, deadline)
  local lane, own = lane_of(queue, class), micros(predicted)
  local ready = q .. 'r:' .. lane .. ':' .. client
  local count, before = call('ZCARD', ready), call('ZCOUNT', ready, '-inf', '(' .. string.format('%.0f', score))
  local w = call('HMGET', q .. 'work', lane, lane .. ':' .. client, 'promised:' .. queue)
  local total, mine, promised = tonumber(w[1] or 0), tonumber(w[2] or 0), tonumber(w[3] or 0)
  local others = call('ZCARD', q .. 'ring:' .. lane) - (count > 0 and 1 or 0)
  local mine_before = (count > 0 and not deadline) and mine * before / count or 0
  local ahead = mine_before + math.min(math.max(total - mine, 0), others * (mine_before + own))
  if deadline then ahead = ahead + promised end
  for rank = 1, deadline and 0 or RANK[class] - 1 do
    ahead = ahead + tonumber(call('HGET', q .. 'work', lane_of(queue, CLASSES[rank])) or 0)
  end
  return before, ahead / 1e6 / workers_of(queue) + residence(queue, predicted, ahead > 0)
end

-- The same of a job that stands in its place, or runs: predicted seconds, position, seconds until it will be done. `more` is
-- the class and score, and whether there is a deadline, of somebody who would follow it.
local function remaining(id, more)
  local f = call('HMGET', job(id), 'status', 'queue', 'client', 'predicted_s', 'steps_done', 'steps_total')
  local queue, predicted = f[2], tonumber(f[4]) or 0
  local left = predicted * (1 - tonumber(f[5]) / math.max(tonumber(f[6]), 1))
  if f[1] == 'running' then return predicted, 0, residence(queue, left, backlog(queue) > 0, predicted) end
  local class, score, due = place_of(id)
  local timed = due ~= '' or (more and more.timed)
  if more and RANK[more.class] < RANK[class] then class = more.class end
  score = more and math.min(tonumber(score), more.score) or tonumber(score)
  local position, eta = estimate(queue, class, f[3], score, left, timed)
  if due ~= '' then eta = eta - predicted / workers_of(queue) end -- its own work is among what was promised
  return predicted, call('ZRANK', q .. 'alone:' .. queue, id) or position, math.max(eta, left)
end

-- The client was charged what was predicted; now it is known what it was. Nothing saves up below the present. What was inherited
-- from a canceled job was charged for that one.
local function correct(id, seconds)
  local f = call('HMGET', job(id), 'queue', 'client', 'charged', 'size', 'steps_done', 'inherited')
  if not f[3] then return end
  local done = tonumber(f[5]) - tonumber(f[6] or 0)
  local real = seconds ~= '' and tonumber(seconds) or (done > 0 and predict(f[1], f[4], done) or 0)
  local client, before = f[2], present()
  local error = charge_of(client, micros(real)) - tonumber(f[3])
  local spent = tonumber(call('ZSCORE', q .. 'spent', client))
  local lead = q .. 'lead:' .. lane_of(f[1], (place_of(id)))
  if call('ZSCORE', lead, client) then call('ZINCRBY', lead, error, client) end
  if error == 0 or (error < 0 and not spent) or call('EXISTS', q .. 'pending') == 0 then return end
  spent = math.max(math.max(spent or before, before) + error, before)
  call('ZADD', q .. 'spent', spent, client)
  if error > 0 then return end -- claim sees it when the client's turn comes
  for _, class in ipairs(CLASSES) do
    local lane = lane_of(f[1], class)
    local score, shift = call('ZSCORE', q .. 'ring:' .. lane, client), tonumber(call('HGET', q .. 'shift', lane) or 0)
    if score and tonumber(score) + shift > spent then call('ZADD', q .. 'ring:' .. lane, spent - shift, client) end
  end
end
