#!lua
-- upload <client> <most> <rate_per_s> <burst> -> {'welcome'} | {'limited' | 'full', seconds}
-- May one more picture come? It counts as a job does against the client's rate, and as one of the `most` that it may have here.
local client, most, rate, burst = unpack(ARGV, 1, 4)
local own, t = q .. 'up:' .. client, now()
local refusal, accept = limited(client, rate, burst, 1)
if refusal then return refusal end
call('ZREMRANGEBYSCORE', own, '-inf', stamp(t))
if call('ZCARD', own) >= tonumber(most) then
  return { 'full', math.max(1, math.ceil(tonumber(call('ZRANGE', own, 0, 0, 'WITHSCORES')[2]) - t)) }
end
if accept then accept() end
return { 'welcome' }
