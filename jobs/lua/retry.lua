#!lua
-- retry <id> <new_id> -> the record of the new job that does what the dead letter should have, or nil if it is none
-- Terminal states stay: the dead letter names its successor and leaves the list. Asked again, the same one is told.
local id, successor = ARGV[1], ARGV[2]
local known = call('HGET', job(id), 'retried_as')
if known then return call('HGETALL', job(known)) end
if not call('ZSCORE', q .. 'dead', id) or call('EXISTS', job(id)) == 0 then return false end

local t = now()
local place = next_place()
call('SET', q .. 'seq', place)
call('HSET', job(successor), unpack(call('HGETALL', job(id))))
call('HSET', job(successor), 'id', successor, 'status', 'queued', 'created_at', stamp(t), 'started_at', '', 'finished_at', '',
  'steps_done', 0, 'attempt', 0, 'failures', 0, 'losses', '[]', 'pauses', 0, 'worker', '', 'cancel_requested', 0, 'images', '[]',
  'error', '', 'deadline_at', '', 'reuse', 0, 'reuse_key', '', 'score', place)
call('HDEL', job(successor), 'charged', 'as_class', 'as_score', 'as_due', 'inherited', 'batch')
call('HSET', job(id), 'retried_as', successor)
call('ZREM', q .. 'dead', id)
local client = call('HGET', job(id), 'client')
call('ZADD', q .. 'c:' .. client, place, successor)
call('PERSIST', q .. 'c:' .. client)
emit(successor, 'queued')
enqueue(successor)
return call('HGETALL', job(successor))
