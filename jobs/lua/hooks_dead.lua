#!lua flags=no-writes
-- hooks_dead <limit> -> {id, fields} of deliveries that were given up, newest first
local dead = {}
for _, id in ipairs(call('ZREVRANGE', q .. 'hooksdead', 0, tonumber(ARGV[1]) - 1)) do
  local fields = call('HGETALL', q .. 'h:' .. id)
  if #fields > 0 then dead[#dead + 1] = { id, fields } end
end
return dead
