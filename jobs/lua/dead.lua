#!lua flags=no-writes
-- dead <limit> <client or ''> -> records of the dead letters, of that client alone if one is named, newest first
local limit, client = tonumber(ARGV[1]), ARGV[2]
local records = {}
for _, id in ipairs(call('ZREVRANGE', q .. 'dead', 0, -1)) do
  if #records == limit then break end
  local owner = call('HGET', job(id), 'client')
  if owner and (client == '' or owner == client) then records[#records + 1] = call('HGETALL', job(id)) end
end
return records
