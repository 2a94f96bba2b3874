#!lua flags=no-writes
-- list <client> <status or ''> <limit> <cursor or ''> -> {cursor or '', record ...}, newest first
-- Looks at a bounded number of jobs; a page may hold few, or none, and still have a cursor to go on from.
local client, status, limit, cursor = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local LOOKED_AT = 1000
local page, top = { '' }, cursor ~= '' and '(' .. cursor or '+inf'
local found = call('ZREVRANGEBYSCORE', q .. 'c:' .. client, top, '-inf', 'WITHSCORES', 'LIMIT', 0, LOOKED_AT)
for i = 1, #found, 2 do
  local is = call('HGET', job(found[i]), 'status')
  if is and (status == '' or is == status) then page[#page + 1] = call('HGETALL', job(found[i])) end
  local last = i + 1 == #found
  if #page > limit or (last and #found == 2 * LOOKED_AT) then
    page[1] = (last and #found < 2 * LOOKED_AT) and '' or found[i + 1]
    break
  end
end
return page
