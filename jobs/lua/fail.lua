#!lua flags=allow-oom
-- fail <worker> <attempt> <id> <retention_s> <error json> -> 1, or 0 to whoever does not hold the job
local worker, attempt, id, retention, failure = unpack(ARGV)
if settled_by(worker, attempt, id, 'failed') then return 1 end
if not holds(worker, attempt, id) then return 0 end
correct(id, '')
call('HSET', job(id), 'error', failure)
settle(id, 'failed', retention)
return 1
