#!lua flags=allow-oom
-- report_cost <queue> <size> <seconds> -> 1. Moving averages: of this size, and per pixel of the model.
local queue, size, seconds = ARGV[1], ARGV[2], tonumber(ARGV[3])
local NEWEST = 0.2 -- its part of the average
local width, height = string.match(size, '^(%d+)x(%d+)$')

local function average(field, value)
  local before = tonumber(call('HGET', q .. 'cost', field) or value)
  call('HSET', q .. 'cost', field, string.format('%.9g', before + NEWEST * (value - before)))
end

average(queue .. ':' .. size, seconds)
average(queue, seconds / (tonumber(width) * tonumber(height)))
return 1
