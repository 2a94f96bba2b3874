#!lua
-- batch_open <batch> <client> <queue> <service_class> <count> <key> <key_ttl_s> <fingerprint> <max_queued> <max_per_client>
--        <rate_per_s> <burst> <per_day> <pictures> <bad> <field> <value> ...
--        -> {'created' | 'existing', record} | {'conflict'} | {'gone'} | {'limited' | 'spent', seconds}
--        | {'full', seconds, 'client' where only its own part is full}
-- Lets in `count` jobs at once, or none; their places are kept while they come (HOLD_S after each). One that exists and is not complete is held again.
local id, client, queue, class, count, key, key_ttl, fingerprint = unpack(ARGV, 1, 8)
local max_queued, max_per_client, rate, burst, per_day, pictures, bad = unpack(ARGV, 9, 15)
local idem = q .. 'idem:' .. client .. ':' .. key
local t = now()

local function hold_places(batch)
  call('ZREMRANGEBYSCORE', q .. 'filling', '-inf', t)
  call('ZADD', q .. 'filling', t + HOLD_S, batch)
end

local entry = key ~= '' and call('HMGET', idem, 'id', 'fingerprint') or {}
if entry[1] and entry[2] ~= fingerprint then return { 'conflict' } end
if entry[1] then
  local record = call('HGETALL', q .. 'b:' .. entry[1])
  if #record == 0 then return { 'gone' } end
  if call('HGET', q .. 'b:' .. entry[1], 'left') ~= '0' then hold_places(entry[1]) end
  return { 'existing', record }
end

local refusal, accept = limited(client, rate, burst, tonumber(count))
if refusal then return refusal end
local refusal, charge = spent(client, per_day, pictures)
refusal = refusal or full(queue, class, client, max_queued, max_per_client, tonumber(count))
if refusal then return refusal end
if accept then accept() end
if charge then charge() end
call('HSET', q .. 'b:' .. id, unpack(ARGV, 16))
call('HSET', q .. 'b:' .. id, 'id', id, 'client', client, 'created_at', stamp(t), 'finished_at', '', 'count', count, 'left', count,
  'succeeded', 0, 'failed', 0, 'canceled', 0, 'steps_done', 0, 'steps_total', 0, 'work', 0)
call('EXPIRE', q .. 'b:' .. id, KEPT_S) -- until it is sealed
if bad ~= '' then call('SET', q .. 'bad:' .. id, bad, 'EX', KEPT_S) end
if key ~= '' then
  call('HSET', idem, 'id', id, 'fingerprint', fingerprint)
  call('EXPIRE', idem, key_ttl)
end
local index = q .. 'bc:' .. client
call('ZADD', index, t, id)
call('ZREMRANGEBYRANK', index, 0, -1001)
call('EXPIRE', index, 5 * KEPT_S)
hold_places(id)
return { 'created', call('HGETALL', q .. 'b:' .. id) }
