//! The functions that scripts can use, and the contents of `ctx`.

use super::*;

#[track_caller]
fn check(expression: &str, expected: &str) {
    let found = on_response(&format!("response.text = {expression}; response"), "{\"b\": [1, 2.5, null]}").unwrap();
    assert_eq!(found.1, expected, "{expression}");
}

#[test]
fn digests_and_encodings_match_their_specifications() {
    // RFC 4231 §4.3, FIPS 180-4, RFC 4648 §10.
    let mac = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
    check("hex(hmac_sha256(\"Jefe\", \"what do ya want for nothing?\"))", mac);
    check("hex(hmac_sha256(\"Jefe\".to_blob(), \"what do ya want for nothing?\".to_blob()))", mac);
    check("hex(sha256(\"abc\"))", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    check("base64(\"foob\")", "Zm9vYg==");
    check("base64url(\"foob\")", "Zm9vYg");
    check("base64url(blob(3, 0xff))", "____");
    check("base64(blob(3, 0xff))", "////");
    check("hex(\"\\u00e9\")", "c3a9");
    check("url_encode(\"a-._~ /+\\u00e9\")", "a-._~%20%2F%2B%C3%A9");
}

#[test]
fn json_is_encoded_and_parsed() {
    check("json(response.json)", r#"{"b":[1,2.5,null]}"#);
    check("json(\"a\\\"\\n\")", r#""a\"\n""#);
    check("json(#{a: true, c: 'x', d: ()})", r#"{"a":true,"c":"x","d":null}"#);
    check("`${parse_json(\"{\\\"a\\\": {\\\"b\\\": 3}}\").a.b + 1}`", "4");
    check("{ let t = 1; try { parse_json(\"{\") } catch { t = \"caught\" } t }", "caught");
}

#[test]
fn a_script_sees_its_context() {
    check(
        "json(ctx)",
        concat!(
            r#"{"connection":"crm","grant":"client_credentials","profile":"default","subject":null,"#,
            r#""variables":{"account":"a1"}}"#,
        ),
    );
    check("`${now()}`", "1700000000");
}

#[test]
fn uuids_are_random() {
    let (_, first) = on_response("response.text = uuid(); response", "").unwrap();
    let (_, second) = on_response("response.text = uuid(); response", "").unwrap();
    assert_ne!(first, second);
    for uuid in [first, second] {
        let shape: String = uuid.chars().map(|c| if c.is_ascii_hexdigit() { 'x' } else { c }).collect();
        assert_eq!(shape, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx");
        assert_eq!(&uuid[14..15], "4");
        assert!("89ab".contains(&uuid[19..20]), "{uuid}");
    }
}

#[test]
fn text_is_replaced_and_padded() {
    let after = |change: &str| format!("{{ let t = \"abab\"; {change}; t }}");
    check(&after("t.replace(\"a\", \"xy\")"), "xybxyb");
    check(&after("t.replace('a', \"xy\")"), "xybxyb");
    check(&after("t.replace('a', 'x')"), "xbxb");
    check(&after("t.replace(\"\", \"-\")"), "-a-b-a-b-");
    check(&after("t.pad(7, \"xy\")"), "ababxyx");
    check(&after("t.pad(2, \"xy\")"), "abab");
    check(&after("t.pad(9, \"\")"), "abab");
}

#[test]
fn closures_and_helpers_work() {
    check("[1, 2, 3].filter(|n| n > 1).map(|n| n * 2).to_string()", "[4, 6]");
    let source =
        "fn sign(text) { hex(text) } fn token_request(r, c) { r.form.s = sign(\"a\"); print(\"x\"); debug(\"x\"); r }";
    let changed = Script::compile(source).unwrap().token_request(request(), &context()).unwrap();
    assert_eq!(changed.form.last(), Some(&("s".into(), "61".into())));
}
