#!lua
-- retry <id> <new_id> <max_queued> <max_per_client> <rate_per_s> <burst> <per_day>
--       -> {'created' | 'existing', the record of the new job that does what the dead letter should have} | {'none'} if it is no dead letter
--       | {'gone'} if the new job has expired
--       | {'limited' | 'spent', seconds} | {'full', seconds, 'client' where only its own part is full}, as of submit
-- Terminal states stay: the dead letter names its successor and leaves the list. Asked again, the same one is told.
local id, successor, max_queued, max_per_client, rate, burst, per_day = unpack(ARGV, 1, 7)
local known = call('HGET', job(id), 'retried_as')
local made = known and call('HGETALL', job(known))
if made then return { #made > 0 and 'existing' or 'gone', made } end
if not call('ZSCORE', q .. 'dead', id) or call('EXISTS', job(id)) == 0 then return { 'none' } end

local t, f = now(), call('HMGET', job(id), 'client', 'queue', 'service_class', 'params')
local client, pictures = f[1], cjson.decode(f[4]).num_images or 1
local refusal, accept, count = nil, nil, nil
refusal, accept = limited(client, rate, burst, 1)
if refusal then return refusal end
refusal, count = spent(client, per_day, pictures)
refusal = refusal or full(f[2], f[3] or 'normal', client, max_queued, max_per_client, 1)
if refusal then return refusal end
if accept then accept() end
if count then count() end
local place = next_place()
call('SET', q .. 'seq', place)
call('HSET', job(successor), unpack(call('HGETALL', job(id))))
call('HSET', job(successor), 'id', successor, 'status', 'queued', 'created_at', stamp(t), 'started_at', '', 'finished_at', '',
  'steps_done', 0, 'attempt', 0, 'failures', 0, 'losses', '[]', 'pauses', 0, 'worker', '', 'cancel_requested', 0, 'images', '[]',
  'error', '', 'deadline_at', '', 'reuse', 0, 'reuse_key', '', 'score', place)
call('HDEL', job(successor), 'charged', 'as_class', 'as_score', 'as_due', 'inherited', 'batch')
call('HSET', job(id), 'retried_as', successor)
call('ZREM', q .. 'dead', id)
call('ZADD', q .. 'c:' .. client, place, successor)
call('PERSIST', q .. 'c:' .. client)
emit(successor, 'queued')
enqueue(successor)
return { 'created', call('HGETALL', job(successor)) }
