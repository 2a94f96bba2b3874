-- How a job leaves its worker, and how it ends.

-- Ends the worker's right to a job.
local function free(id)
  local f = call('HMGET', job(id), 'worker', 'queue', 'predicted_s')
  if call('ZREM', q .. 'lease', id) == 1 and f[2] then call('HINCRBY', q .. 'work', 'running:' .. f[2], -micros(f[3])) end
  if f[2] and call('EXISTS', q .. 'lease') == 0 then call('HDEL', q .. 'work', 'running:' .. f[2]) end
  call('SREM', q .. 'w:' .. (f[1] or ''), id)
end

local function same_key(id)
  local f = call('HMGET', job(id), 'client', 'reuse_key')
  return f[2] and f[2] ~= '' and q .. 'same:' .. f[1] .. ':' .. f[2]
end

local MAX_FOLLOWERS = 100 -- of one job

-- The earlier job that asked for the same, and whether it has the answer already.
local function leader(client, reuse_key)
  local first = reuse_key ~= '' and call('GET', q .. 'same:' .. client .. ':' .. reuse_key)
  local f = first and call('HMGET', job(first), 'status', 'images', 'cancel_requested') or {}
  if f[1] == 'succeeded' and f[2] ~= '[]' then return first, true end
  local open = (f[1] == 'queued' or f[1] == 'running') and f[3] ~= '1'
  if open and call('ZCARD', q .. 'f:' .. first) < MAX_FOLLOWERS then return first, false end
end

-- A follower whose leader has ended waits for it no more.
local function unfollow(id)
  local f = call('HMGET', job(id), 'client', 'deadline_at')
  count_out(id, f[1], f[2] and f[2] ~= '')
  call('HDEL', job(id), 'follows')
end

-- A job that ends without a result leaves its followers the first of them to follow: at the better of both places, and with
-- what the checkpoint holds.
local function hand_over(id)
  local same, group = same_key(id), q .. 'f:' .. id
  local heir = call('ZPOPMIN', group)[1]
  if not heir then
    if same and call('GET', same) == id then call('DEL', same) end
    return
  end
  local place, own = call('HGET', job(id), 'score'), call('HGET', job(heir), 'score')
  unfollow(heir)
  call('HSET', job(heir), 'score', tonumber(place) < tonumber(own) and place or own)
  if same then call('SET', same, heir) end
  for _, follower in ipairs(call('ZRANGE', group, 0, -1)) do call('HSET', job(follower), 'follows', heir) end
  if call('EXISTS', group) == 1 then call('RENAME', group, q .. 'f:' .. heir) end
  if call('EXISTS', q .. 'k:' .. id) == 1 then
    call('RENAME', q .. 'k:' .. id, q .. 'k:' .. heir)
    local steps = call('HGET', q .. 'k:' .. heir, 'steps')
    call('HSET', job(heir), 'steps_done', steps, 'inherited', steps) -- what the canceled job was charged for
  end
  local class, score, due = best_place(heir)
  call('HSET', job(heir), 'as_class', class, 'as_score', score, 'as_due', due)
  enqueue(heir)
end

-- A batch counts its lines as they come: those on their way, their work, and in each lane the last place.
local function count_line(batch, queue, class, score, predicted, steps)
  local record, lane = q .. 'b:' .. batch, 'lane:' .. class .. ':' .. queue
  call('HINCRBY', record, 'left', -1)
  call('HINCRBY', record, 'steps_total', steps)
  call('HINCRBY', record, 'work', micros(predicted))
  call('ZADD', q .. 'filling', 'XX', now() + HOLD_S, batch)
  local last = call('HGET', record, lane)
  if not last or tonumber(last) < score then call('HSET', record, lane, string.format('%.0f', score)) end
end

-- A batch whose last job has ended is kept for as long as that job.
local function close_batch(batch, retention)
  local record = q .. 'b:' .. batch
  local f = call('HMGET', record, 'count', 'left', 'succeeded', 'failed', 'canceled', 'client')
  if f[2] ~= '0' or f[3] + f[4] + f[5] < tonumber(f[1]) then return end
  call('HSET', record, 'finished_at', stamp(now()))
  call('EXPIRE', record, retention)
  call('EXPIRE', q .. 'bad:' .. batch, retention)
  call('SET', q .. 'bt:' .. batch, f[6], 'EX', retention + KEPT_S)
end

local function count_end(id, batch, status, retention)
  local record, f = q .. 'b:' .. batch, call('HMGET', job(id), 'predicted_s', 'steps_done')
  if call('EXISTS', record) == 0 then return end
  call('HINCRBY', record, status, 1)
  call('HINCRBY', record, 'steps_done', f[2])
  call('HINCRBY', record, 'work', -micros(f[1]))
  close_batch(batch, retention)
end

local settle
local PREVIEWS_S = 60 -- for which those that were asked for by their steps outlive the job: who reads them may be slower than it

-- Gives a result, or the reason why there is none, to a job that did not run itself.
local function copy_end(from, to, retention)
  local f = call('HMGET', job(from), 'status', 'images', 'warnings', 'error', 'steps_done')
  call('HSET', job(to), 'images', f[2], 'warnings', f[3], 'error', f[4], 'steps_done', f[5])
  settle(to, f[1], retention)
end

local MAX_RESULTS = 10000 -- that are answered again instead of drawn again
local RESULT_S = 3600 -- for which they are

-- Those who asked for the same share the end; the next who asks for it within the hour is answered at once.
local function share(id, status, retention)
  local group, same = q .. 'f:' .. id, same_key(id)
  for _, follower in ipairs(call('ZRANGE', group, 0, -1)) do
    unfollow(follower)
    copy_end(id, follower, retention)
  end
  call('DEL', group)
  if not same or call('GET', same) ~= id then return end
  if status ~= 'succeeded' then return call('DEL', same) end
  call('EXPIRE', same, math.min(tonumber(retention), RESULT_S))
  call('ZADD', q .. 'results', now(), same)
  if call('ZCARD', q .. 'results') > MAX_RESULTS then call('DEL', call('ZPOPMIN', q .. 'results')[1]) end
end

-- The only way into a terminal state: state, last event and expiry in one move.
settle = function(id, status, retention)
  free(id)
  if call('HLEN', q .. 'p:' .. id) > 2 then call('EXPIRE', q .. 'p:' .. id, PREVIEWS_S) else call('DEL', q .. 'p:' .. id) end
  call('HSET', job(id), 'status', status, 'finished_at', stamp(now()))
  local f = call('HMGET', job(id), 'error', 'client', 'reuse', 'batch')
  local failure = f[1] ~= '' and cjson.decode(f[1]) or nil
  emit(id, status, { error = failure })
  call('HINCRBY', q .. 'ended', status == 'failed' and 'failed:' .. (failure and failure.code or '') or status, 1)
  call('EXPIRE', job(id), retention)
  call('EXPIRE', q .. 'e:' .. id, retention)
  call('SET', q .. 't:' .. id, f[2], 'EX', retention + KEPT_S) -- whose it was
  if call('HEXISTS', q .. 'queued', f[2]) == 0 then call('EXPIRE', q .. 'c:' .. f[2], retention + KEPT_S) end
  if f[3] == '1' and status == 'canceled' then hand_over(id) elseif f[3] == '1' then share(id, status, retention) end
  call('DEL', q .. 'k:' .. id)
  if f[4] and f[4] ~= '' then count_end(id, f[4], status, retention) end
end

-- Queued: canceled at once. Running: a wish, which the worker meets at its next renew or progress. Ended, or unknown: unchanged.
local function cancel(id, retention)
  local status = call('HGET', job(id), 'status')
  if status == 'queued' or status == 'running' then call('HSET', job(id), 'cancel_requested', 1) end
  if status == 'queued' then
    withdraw(id)
    correct(id, '') -- it may have run before
    settle(id, 'canceled', retention)
  end
end

-- Back into the queue, or canceled if that was wished meanwhile. Work behind the checkpoint is gone, and that is said.
local function give_back(id, reason, retention)
  if call('HGET', job(id), 'cancel_requested') == '1' then
    correct(id, '')
    return settle(id, 'canceled', retention)
  end
  free(id)
  call('DEL', q .. 'p:' .. id)
  call('HSET', job(id), 'status', 'queued', 'worker', '', 'steps_done', call('HGET', q .. 'k:' .. id, 'steps') or 0)
  emit(id, 'requeued', { reason = reason })
  enqueue(id)
end
