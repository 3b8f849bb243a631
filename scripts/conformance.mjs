// Counts the results of http-cache-tests by kind, and holds the failures against docs/conformance.md.
import fs from 'node:fs'
import { pathToFileURL } from 'node:url'

const [folder, resultsFile, listFile, mode] = process.argv.slice(2)
const load = async name => (await import(pathToFileURL(`${folder}/tests/${name}.mjs`))).default
const suites = await load('index')
const surrogate = await load('surrogate-control')
const results = JSON.parse(fs.readFileSync(resultsFile, 'utf8'))

const counts = { required: [0, 0], optimal: [0, 0], check: [0, 0] }
const failed = { required: [], optimal: [], check: [] }
const seen = new Set()
const tests = suites.flatMap(suite => suite.tests).filter(test => !test.browser_only)
const byId = new Map([...tests, ...surrogate.tests].map(test => [test.id, test]))

// A test counts only if those it depends on have passed: its result says nothing otherwise.
const passes = id => results[id] === true && (byId.get(id)?.depends_on ?? []).every(passes)

for (const test of tests) {
  if (seen.has(test.id)) continue
  seen.add(test.id)
  const kind = test.kind ?? 'required'
  counts[kind][1]++
  if (passes(test.id)) {
    counts[kind][0]++
    continue
  }
  const reason = results[test.id] === true ? 'a test it depends on fails' : (results[test.id] ?? 'no result').toString()
  failed[kind].push([test.id, reason])
}

for (const kind of ['required', 'optimal', 'check']) {
  for (const [id, reason] of failed[kind]) console.log(`${kind}\t${id}\t${reason}`)
}
for (const [kind, [good, all]] of Object.entries(counts)) console.log(`${kind}: ${good} of ${all}`)
console.log(`surrogate-control: ${surrogate.tests.filter(test => passes(test.id)).length} of ${surrogate.tests.length}`)

if (mode === '--check') {
  const listed = new Set([...fs.readFileSync(listFile, 'utf8').matchAll(/^\| `([\w=-]+)` \|/gm)].map(match => match[1]))
  const unlisted = failed.required.filter(([id]) => !listed.has(id))
  for (const [id] of unlisted) console.error(`required test failed that ${listFile} does not list: ${id}`)
  if (counts.optimal[0] < 75) console.error(`optimal: ${counts.optimal[0]}, fewer than 75`)
  process.exit(unlisted.length > 0 || counts.optimal[0] < 75 ? 1 : 0)
}
