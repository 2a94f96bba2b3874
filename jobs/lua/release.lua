#!lua flags=allow-oom
-- release <worker> <attempt> <id> <retention_s> -> 1, or 0 to whoever does not hold the job. No failure is counted.
local worker, attempt, id, retention = unpack(ARGV)
if not holds(worker, attempt, id) then return 0 end
give_back(id, 'released', retention)
return 1
