//! Scripts that would exhaust time or memory.

use std::time::Instant;

use super::*;

/// Maximum growth of the process's peak memory during a call, with room for tests that run in parallel.
const GROWTH_BYTES_MAX: u64 = 200 * 1024 * 1024;

/// Checks that `body` fails within a second, with an error that contains one of `expected`.
#[track_caller]
fn check(helpers: &str, body: &str, expected: &[&str]) {
    let source = format!("{helpers} fn token_request(request, ctx) {{ {body} }}");
    let script = Script::compile(&source).expect("the script compiles");
    let before = peak_bytes();
    let started = Instant::now();
    let found = message(script.token_request(request(), &context()).expect_err(body));
    let took = started.elapsed();
    assert!(expected.iter().any(|expected| found.contains(expected)), "{body}: {found}");
    assert!(took < Duration::from_secs(1), "{body}: {took:?}");
    let growth = peak_bytes().saturating_sub(before);
    assert!(growth < GROWTH_BYTES_MAX, "{body}: {growth} bytes");
}

/// Peak resident memory of the process (proc_pid_status(5), VmHWM).
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

const TIME: &[&str] = &["too many operations", "runs longer"];

#[test]
fn endless_loops_are_stopped() {
    check("", "loop { }", TIME);
    check("", "while true { let x = 1; }", TIME);
    check("", "loop { try { throw 1 } catch { } }", TIME);
    check("", "for i in 0..9223372036854775807 { }", TIME);
    check("", "try { loop { } } catch { request }", TIME);
    check("", "let s = \"\"; s.pad(200000, \"x\"); loop { sha256(s); }", TIME);
    check("", "let s = \"\"; s.pad(200000, \"x\"); loop { let t = s; t.replace(\"x\", \"y\"); }", TIME);
    check("", "sleep(1000000)", &["no function sleep"]);
    check("", "sleep(1000000.0)", &["no function sleep"]);
}

#[test]
fn recursion_is_stopped() {
    check("fn f(x) { f(x + 1) }", "f(1)", &["too many nested calls"]);
    check("fn f(x) { try { f(x) } catch { f(x) } }", "f(1)", &["too many nested calls"]);
    check("fn f(x) { f(x); f(x) }", "f(1)", &["too many nested calls"]);
    check("fn f(x) { [x, x].map(|y| f(y)) }", "f(1)", &["too many nested calls"]);
    // As deep as both bounds allow, on a test thread's stack (2 MiB, like a blocking thread's).
    let deep = format!("fn f(x) {{ {}f(x){} }}", "[".repeat(8), "]".repeat(8));
    check(&deep, "f(1)", &["too many nested calls"]);
}

#[test]
fn growth_is_stopped() {
    const SIZE: &[&str] = &["too large", "runs longer", "too many operations"];
    check("", "let s = \"x\"; loop { s += s; }", &["too large"]);
    check("", "let s = \"x\"; loop { s = s + s; }", &["too large"]);
    check("", "let s = \"x\"; loop { s = `${s}${s}`; }", &["too large"]);
    check("", "let a = [1]; loop { a += a; }", &["too large"]);
    check("", "let a = [1]; loop { a.append(a); }", &["too large"]);
    check("", "let a = [1]; loop { a = [a, a]; }", &["too large"]);
    check("", "let a = []; loop { a = [a]; }", SIZE);
    check("", "let m = #{}; loop { m = #{a: m, b: m}; }", &["too large"]);
    check("", "let m = #{}; loop { m = #{a: m}; }", SIZE);
    check("", "let m = #{}; let i = 0; loop { i += 1; m[`k${i}`] = i; }", &["too large"]);
    let filled = "let s = \"\"; s.pad(260000, \"x\"); let i = 0;";
    check("", &format!("{filled} let m = #{{}}; loop {{ i += 1; m[`k${{i}}`] = s + i; }}"), &["too large"]);
    check("", &format!("{filled} let a = []; a.pad(1024, 1); loop {{ a[i] = s + i; i += 1; }}"), &["too large"]);
    check("", &format!("{filled} let a = []; loop {{ a.push(s + i); i += 1; }}"), &["too large"]);
    let inside = "fn f(s) { let i = 0; loop { i += 1; this[`k${i}`] = s + i; } }";
    check(inside, &format!("{filled} let m = #{{}}; m.f(s)"), &["too large"]);
    check("", "let b = blob(1000000000000);", &["too large"]);
    check("", "let a = []; a.pad(1000000000000, 1);", &["too large"]);
    check("", "let s = \"\"; s.pad(1000000000000, \"x\");", &["too large"]);
    check("", "let s = \"\"; s.pad(1000000000000, 'x');", &["too large"]);
    check("", "let s = \"\"; s.pad(200000, \"x\"); s.replace(\"x\", s);", &["too large"]);
    check("", "let s = \"\"; s.pad(200000, \"x\"); s.replace('x', s);", &["too large"]);
    check("", "let s = \"\"; s.pad(200000, \"x\"); s.replace(\"\", s);", &["too large"]);
    check("", "let s = \"\"; s.pad(200000, \"x\"); s.split(\"\");", &["too large"]);
    check("", "let s = \"\"; s.pad(200000, \"x\"); hex(hex(s));", &["too large"]);
    check("", "let s = \"\"; s.pad(99000, \"[],\"); parse_json(`[${s}[]]`);", &["too large"]);
    let variables: String = (0..65).map(|n| format!("let v{n} = {n};")).collect();
    check("", &variables, &["too many variables"]);
}

/// Many values, each of maximum size: the time limit stops it.
#[test]
fn wide_growth_stays_bounded() {
    let big = "let s = \"\"; s.pad(260000, \"x\"); let a = []; a.pad(1024, 1);";
    check("", &format!("{big} a.map(|i| {{ let t = \"\"; t.pad(260000, \"x\"); t }}); loop {{ }}"), &["too", "longer"]);
    let keep: String = (0..60).map(|n| format!("let v{n} = s + \"{n}\";")).collect();
    check(&format!("fn f(n) {{ let s = \"\"; s.pad(260000, \"x\"); {keep} f(n) }}"), "f(1)", &["too", "longer"]);
}
