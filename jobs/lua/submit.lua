#!lua
-- submit <id> <client> <queue> <service_class> <priority> <steps> <size> <deadline_s> <key> <key_ttl_s> <fingerprint>
--        <reuse_key> <max_queued> <max_per_client> <rate_per_s> <burst> <per_day> <pictures> <retention_s> <field> <value> ...
--        -> {'created' | 'existing', record} | {'conflict'} | {'gone'} | {'limited' | 'spent' | 'unmeetable', seconds}
--        | {'full', seconds, 'client' where only its own part is full}
-- The one script that is refused when the server is out of memory: nothing is accepted that cannot be kept.
local id, client, queue, class, priority, steps, size, deadline_s, key, key_ttl, fingerprint = unpack(ARGV, 1, 11)
local reuse_key, max_queued, max_per_client, rate, burst, per_day, pictures, retention = unpack(ARGV, 12, 19)
local idem, same = q .. 'idem:' .. client .. ':' .. key, q .. 'same:' .. client .. ':' .. reuse_key
local DAY_S = 86400
local t = now()

local function known()
  if key ~= '' then
    local entry = call('HMGET', idem, 'id', 'fingerprint')
    if entry[1] and entry[2] ~= fingerprint then return { 'conflict' } end
    local record = entry[1] and call('HGETALL', job(entry[1])) or {}
    if #record > 0 then return { 'existing', record } end
    if entry[1] and call('EXISTS', q .. 't:' .. entry[1]) == 1 then return { 'gone' } end -- it is not done a second time
  end
  if call('EXISTS', job(id)) == 1 then return { 'existing', call('HGETALL', job(id)) } end
end

-- GCRA: the time at which the client will have used up its burst. Only what is accepted moves it.
local function limited()
  if tonumber(rate) <= 0 then return nil end
  local each, bucket = 1 / tonumber(rate), q .. 'rate:' .. client
  local full_at = math.max(tonumber(call('GET', bucket) or 0), t) + each
  local wait = full_at - t - math.max(tonumber(burst), 1) * each
  if wait > 1e-6 then return { 'limited', math.ceil(wait) } end
  return nil, function() call('SET', bucket, stamp(full_at), 'PX', math.ceil((full_at - t) * 1000) + 1000) end
end

-- Pictures of the day, in UTC. Those that are shared are drawn once and count once.
local function spent()
  if tonumber(per_day) <= 0 then return nil end
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

local function full()
  if call('SCARD', q .. 'pending') >= tonumber(max_queued) then return { 'full', retry_after(queue, backlog(queue)) } end
  if tonumber(call('HGET', q .. 'queued', client) or 0) < tonumber(max_per_client) then return nil end
  local lane = lane_of(queue, class)
  local own = tonumber(call('HGET', q .. 'work', lane .. ':' .. client) or 0)
  return { 'full', retry_after(queue, own * math.max(call('ZCARD', q .. 'ring:' .. lane), 1)), 'client' }
end

local function forget_expired(index)
  for _, old in ipairs(call('ZRANGE', index, 0, 1)) do
    if call('EXISTS', job(old)) == 0 then call('ZREM', index, old) end
  end
end

local answer = known()
if answer then return answer end
local refusal, accept = limited()
if refusal then return refusal end
local first, ready = leader(client, reuse_key)
local count
if not first then refusal, count = spent() end
if refusal then return refusal end
refusal = not ready and full()
if refusal then return refusal end

local place = next_place()
local score = place - tonumber(priority) * PRIORITY_US
local predicted = predict(queue, size, steps)
if deadline_s ~= '' and not ready then
  local _, eta
  if first then
    _, _, eta = remaining(first, { class = class, score = score, timed = true })
  else
    _, eta = estimate(queue, class, client, score, predicted, true)
  end
  if eta > tonumber(deadline_s) then return { 'unmeetable', string.format('%.3f', eta) } end
end

if accept then accept() end
if count then count() end
call('SET', q .. 'seq', place)
call('HSET', job(id), unpack(ARGV, 20))
call('HSET', job(id), 'created_at', stamp(t), 'queue', queue, 'score', score, 'size', size, 'predicted_s', stamp(predicted))
local deadline = deadline_s ~= '' and stamp(t + tonumber(deadline_s)) or ''
if deadline ~= '' then call('HSET', job(id), 'deadline_at', deadline) end
if reuse_key ~= '' then call('HSET', job(id), 'reuse_key', reuse_key) end
if key ~= '' then
  call('HSET', idem, 'id', id, 'fingerprint', fingerprint)
  call('EXPIRE', idem, key_ttl)
end
local index = q .. 'c:' .. client
forget_expired(index)
call('ZADD', index, place, id)
call('PERSIST', index)
emit(id, 'queued')
if ready then
  copy_end(first, id, retention)
elseif first then
  call('HSET', job(id), 'follows', first)
  call('ZADD', q .. 'f:' .. first, score, id)
  count_in(id, client, deadline)
  regroup(first)
else
  if reuse_key ~= '' then call('SET', same, id) end
  enqueue(id)
end
return { 'created', call('HGETALL', job(id)) }
