#!lua flags=allow-oom
-- release <worker> <attempt> <id> <retention_s> <reason> -> 1, or 0 to whoever does not hold the job. No failure is counted.
local worker, attempt, id, retention, reason = unpack(ARGV)
if not holds(worker, attempt, id) then return 0 end
if reason == 'paused' then call('HINCRBY', job(id), 'pauses', 1) end
give_back(id, reason, retention)
return 1
