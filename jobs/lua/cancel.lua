#!lua flags=allow-oom
-- cancel <id> <retention_s> -> the record afterwards, or nil for an unknown id
-- Queued: canceled at once. Running: a wish, which the worker meets at its next renew or progress. Ended: unchanged.
local id, retention = unpack(ARGV)
local status = call('HGET', job(id), 'status')
if not status then return false end
if status == 'queued' or status == 'running' then call('HSET', job(id), 'cancel_requested', 1) end
if status == 'queued' then
  withdraw(id)
  correct(id, '') -- it may have run before
  settle(id, 'canceled', retention)
end
return call('HGETALL', job(id))
