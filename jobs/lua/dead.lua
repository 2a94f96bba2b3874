#!lua flags=no-writes
-- dead <limit> -> records of the dead letters, newest first
local records = {}
for _, id in ipairs(call('ZREVRANGE', q .. 'dead', 0, tonumber(ARGV[1]) - 1)) do
  local record = call('HGETALL', job(id))
  if #record > 0 then records[#records + 1] = record end
end
return records
