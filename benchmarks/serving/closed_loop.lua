-- Sends the lines of a file in turn as JSON bodies, and tells the result as one line of JSON.
local requests, count, at = {}, 0, 0

function init(args)
  wrk.method = "POST"
  wrk.headers["content-type"] = "application/json"
  for line in io.lines(args[1]) do
    count = count + 1
    requests[count] = wrk.format(nil, nil, nil, line)
  end
end

function request()
  at = at % count + 1
  return requests[at]
end

function done(summary, latency, all)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%.6f,"p50":%.3f,"p90":%.3f,"p99":%.3f,"p99.9":%.3f,"max":%.3f,' ..
    '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3,
    latency:percentile(99.9) / 1e3, latency.max / 1e3,
    e.connect, e.read, e.write, e.status, e.timeout))
end
