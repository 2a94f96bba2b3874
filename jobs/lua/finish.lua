#!lua flags=allow-oom
-- finish <worker> <attempt> <id> <retention_s> <images json> <warnings json> <seconds or ''>
--        -> 1, or 0 to whoever does not hold the job
local worker, attempt, id, retention, images, warnings, seconds = unpack(ARGV)
if settled_by(worker, attempt, id, 'succeeded') then return 1 end
if not holds(worker, attempt, id) then return 0 end
call('HSET', job(id), 'images', images, 'steps_done', call('HGET', job(id), 'steps_total'))
correct(id, seconds)
if warnings ~= '[]' then -- found while drawing; they join those of the submit
  local all = cjson.decode(call('HGET', job(id), 'warnings'))
  for _, warning in ipairs(cjson.decode(warnings)) do all[#all + 1] = warning end
  call('HSET', job(id), 'warnings', cjson.encode(all))
end
settle(id, 'succeeded', retention)
return 1
