//! Sources that are rejected.

use super::*;

#[track_caller]
fn check(source: &str, line: Option<usize>, expected: &str) {
    let error = Script::compile(source).expect_err("the source is rejected");
    assert!(error.message.contains(expected), "{source:.200}: {error:?}");
    assert_eq!(error.line, line, "{source:.200}: {error:?}");
    assert!(!error.message.contains("s3cret"), "{error:?}");
    assert!(error.message.len() <= 300 && error.message.is_ascii(), "{error:?}");
}

const HOOK: &str = "fn token_request(r, c) { r }\n";

#[test]
fn a_syntax_error_has_a_position() {
    check("fn token_request(r, c) {\n  r +\n}", Some(3), "");
    check("fn token_request(r, c) {\n let a = \"s3cret", Some(2), "a string is not terminated");
    check("fn token_request(r, c) {\n let a = 's3cret'; r }", Some(2), "a literal or a symbol");
    check("fn token_request(r, c) { #{s3cret: 1, s3cret: 2} }", Some(1), "the same key twice");
    check("fn token_request(r, c) {\n unknown }", Some(2), "Undefined variable: unknown");
    let error = Script::compile("fn token_request(r, c) {\n unknown }").unwrap_err();
    assert_eq!(error.column, Some(2));
}

#[test]
fn a_script_needs_a_hook_with_two_parameters() {
    check("", None, "none of the functions");
    check("fn other(a, b) { a }", None, "none of the functions");
    check("fn helper() { 1 }\nfn token_request(r) { r }", Some(2), "token_request takes 2 parameters");
    check("fn token_response(a, b, c) { a }", Some(1), "not 3");
    check(&format!("{HOOK}\n  private fn authorization_request() {{ 1 }}"), Some(3), "not 0");
}

#[test]
fn a_statement_outside_of_a_function_is_rejected() {
    for statement in
        ["const X = 1;", "let x = 1;", "1 + 1;", "42", "\"s3cret\"", "helper();", "{ 1 }", "loop { }", "if true { }"]
    {
        check(&format!("{HOOK}{statement}"), Some(2), "a statement outside of a function");
    }
    assert!(Script::compile(&format!("// comment\n{HOOK};;\n/* more */")).is_ok());
}

#[test]
fn eval_import_and_curry_are_rejected() {
    let inside = |body: &str| format!("fn token_request(r, c) {{\n{body} }}");
    check(&inside("eval(\"s3cret\")"), Some(2), "eval");
    check(&inside("import \"s3cret\" as x;"), Some(2), "import");
    check(&inside("let f = Fn(\"g\").curry(1); r"), Some(2), "name of a property");
    check(&inside("let x = 1; let f = || x; r"), Some(2), "Undefined variable: x");
}

#[test]
fn the_size_of_a_source_is_bounded() {
    check(&format!("{HOOK}//{}", "x".repeat(SOURCE_BYTES_MAX)), None, "longer than 65536 bytes");
    let functions: String = (0..64).map(|n| format!("fn f{n}() {{ {n} }}\n")).collect();
    check(&format!("{HOOK}{functions}"), Some(65), "functions");
    let items = "1,".repeat(1025);
    check(&format!("fn token_request(r, c) {{ [{items}] }}"), Some(1), "exceeds the maximum");
}

/// Deep nesting does not overflow the parser's stack (a test thread has 2 MiB, like a blocking thread).
#[test]
fn deep_nesting_is_rejected_without_a_stack_overflow() {
    let nested = |open: &str, inner: &str, close: &str| {
        let times = (SOURCE_BYTES_MAX - 100) / (open.len() + close.len());
        format!("fn token_request(r, c) {{ {}{inner}{} }}", open.repeat(times), close.repeat(times))
    };
    let deep = [
        nested("(", "1", ")"),
        nested("[", "1", "]"),
        nested("#{a:", "1", "}"),
        nested("{", "1", "}"),
        nested("!", "true", ""),
        nested("-", "1", ""),
        nested("hex(", "1", ")"),
        nested("1+", "1", ""),
        nested("1-(", "1", ")"),
        nested("1**", "1", ""),
        nested("true&&", "true", ""),
        nested("r??", "r", ""),
        nested("r=", "r", ""),
        nested("if r {} else ", "if r {}", ""),
        nested("switch r { _ => ", "1", "}"),
        nested("|x|", "x", ""),
        nested("`${", "1", "}`"),
        nested("while r {", "", "}"),
        nested("try { } catch {", "", "}"),
    ];
    for source in deep {
        let error = Script::compile(&source).expect_err(&source[..60]);
        assert!(error.message.len() <= 300, "{error:?}");
    }
    // Long but not deep: these may compile, and then run.
    for source in [
        nested("", "r", ".a"),
        nested("", "r", "[0]"),
        nested("", "r", ".a()"),
        nested("", "r", "?.a"),
        nested("r;", "r", ""),
    ] {
        if let Ok(script) = Script::compile(&source) {
            let _ = script.token_request(request(), &context());
        }
    }
}
