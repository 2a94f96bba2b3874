#!lua flags=no-writes
-- hooks_dead <limit> <client or ''> -> {id, fields} of deliveries that were given up, of that client's jobs alone if one is named, newest first
local limit, client = tonumber(ARGV[1]), ARGV[2]
local dead = {}
for _, id in ipairs(call('ZREVRANGE', q .. 'hooksdead', 0, -1)) do
  if #dead == limit then break end
  local owner = call('HGET', q .. 'h:' .. id, 'client')
  if owner and (client == '' or owner == client) then dead[#dead + 1] = { id, call('HGETALL', q .. 'h:' .. id) } end
end
return dead
