#!lua
-- submit <id> <client> <queue> <service_class> <priority> <steps> <size> <deadline_s> <key> <key_ttl_s> <fingerprint>
--        <reuse_key> <max_queued> <max_per_client> <rate_per_s> <burst> <per_day> <pictures> <retention_s> <batch or ''> <field> <value> ...
--        -> {'created', what of the record is new, and of a job that waits what `outlook` tells} | {'existing', record} | {'conflict'} | {'gone'}
--        | {'limited' | 'spent' | 'unmeetable', seconds} | {'full', seconds, 'client' where only its own part is full}
-- Of a batch, which batch_open has let in: {'created' | 'existing'} | {'canceled'}; its id is never taken twice, and where its deadline
-- cannot be met it has failed with that.
-- With batch_open the one script that is refused when the server is out of memory: nothing is accepted that cannot be kept.
local id, client, queue, class, priority, steps, size, deadline_s, key, key_ttl, fingerprint = unpack(ARGV, 1, 11)
local reuse_key, max_queued, max_per_client, rate, burst, per_day, pictures, retention, batch = unpack(ARGV, 12, 20)
local idem, same = q .. 'idem:' .. client .. ':' .. key, q .. 'same:' .. client .. ':' .. reuse_key
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

local function forget_expired(index)
  for _, old in ipairs(call('ZRANGE', index, 0, 1)) do
    if call('EXISTS', job(old)) == 0 then call('ZREM', index, old) end
  end
end

local accept
if batch ~= '' then
  if call('EXISTS', job(id), q .. 't:' .. id) > 0 then return { 'existing' } end
  if call('HEXISTS', q .. 'b:' .. batch, 'left') == 0 or call('HEXISTS', q .. 'b:' .. batch, 'stopped') == 1 then return { 'canceled' } end
else
  local answer, refusal = known(), nil
  if answer then return answer end
  refusal, accept = limited(client, rate, burst, 1)
  if refusal then return refusal end
end
local first, ready = leader(client, reuse_key)
local refusal, count
if batch == '' and not first then refusal, count = spent(client, per_day, pictures) end
if refusal then return refusal end
if batch ~= '' and first then unspend(client, pictures) end
refusal = batch == '' and not ready and full(queue, class, client, max_queued, max_per_client, 1)
if refusal then return refusal end

local place = next_place()
local score = place - tonumber(priority) * PRIORITY_US
local predicted, late = predict(queue, size, steps), nil
if deadline_s ~= '' and not ready then
  local _, eta
  if first then
    _, _, eta = remaining(first, { class = class, score = score, timed = true })
  else
    _, eta = estimate(queue, class, client, score, predicted, true)
  end
  if eta > tonumber(deadline_s) then late = eta end
  if late and batch == '' then return { 'unmeetable', string.format('%.3f', late) } end
end

if accept then accept() end
if count then count() end
call('SET', q .. 'seq', place)
call('HSET', job(id), unpack(ARGV, 21))
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
if batch ~= '' then count_line(batch, queue, class, score, predicted, steps) end
emit(id, 'queued')
if ready then
  copy_end(first, id, retention)
elseif late then -- a line of a batch: it is told as a failure of that line
  local why = string.format('The job would be done in about %.3g s; deadline_s is %s.', late, tostring(tonumber(deadline_s)))
  call('HSET', job(id), 'error', cjson.encode({ code = 'deadline_unmeetable', message = why, retryable = false }), 'reuse', 0)
  settle(id, 'failed', retention)
elseif first then
  call('HSET', job(id), 'follows', first)
  call('ZADD', q .. 'f:' .. first, score, id)
  count_in(id, client, deadline)
  regroup(first)
else
  if reuse_key ~= '' then call('SET', same, id) end
  enqueue(id)
end
if batch ~= '' then return { 'created' } end
if ready then return { 'created', call('HGETALL', job(id)) } end
local record = { 'created_at', stamp(t), 'predicted_s', stamp(predicted), 'deadline_at', deadline }
local work, position, seconds = remaining(first or id)
return { 'created', record, stamp(work), position, stamp(seconds) }
