//! JSON Merge Patch (RFC 7396) over a definition as it is shown.

use serde_json::{Map, Value};

use super::kept::Shown;

/// Merges `patch` into `target`. `present`: the value that `target` shows.
///
/// A mask is one value rather than a map: other members of a patch replace it, so that `{client_secret: {use: crm}}`
/// replaces a secret that is shown as `{set: true}`.
pub fn merge(target: &mut Value, patch: &Value, present: Option<Shown<'_>>) {
    let Value::Object(changes) = patch else { return *target = patch.clone() };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    if present.is_some_and(Shown::is_secret) && !changes.is_empty() && !changes.contains_key("set") {
        members.clear();
    }
    for (key, change) in changes {
        if change.is_null() {
            members.remove(key);
        } else {
            let present = present.and_then(|present| present.key(key));
            merge(members.entry(key.as_str()).or_insert(Value::Null), change, present);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(mut target: Value, patch: Value, expected: Value) {
        merge(&mut target, &patch, None);
        assert_eq!(target, expected, "{patch}");
    }

    /// The test cases of RFC 7396, Appendix A.
    #[test]
    fn a_patch_is_merged_as_the_rfc_says() {
        check(json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"}));
        check(json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"}));
        check(json!({"a": "b"}), json!({"a": null}), json!({}));
        check(json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"}));
        check(json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"}));
        check(json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]}));
        check(json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}}));
        check(json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]}));
        check(json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"]));
        check(json!({"a": "b"}), json!(["c"]), json!(["c"]));
        check(json!({"a": "foo"}), json!(null), json!(null));
        check(json!({"a": "foo"}), json!("bar"), json!("bar"));
        check(json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1}));
        check(json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"}));
        check(json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}}));
    }

    #[test]
    fn a_mask_is_replaced_as_one_value() {
        let (plain, masked) = (json!("hunter2"), json!({"set": true}));
        for (patch, expected) in [
            (json!({"use": "crm"}), json!({"use": "crm"})),
            (json!({"set": null, "use": "crm"}), json!({"use": "crm"})),
            (json!({"set": true}), json!({"set": true})),
            (json!({}), json!({"set": true})),
            (json!("new"), json!("new")),
        ] {
            let mut target = masked.clone();
            merge(&mut target, &patch, Some(Shown { plain: &plain, masked: &masked }));
            assert_eq!(target, expected, "{patch}");
        }
        // Claims that look like a mask are a map.
        let (claims, mut target) = (json!({"set": true}), json!({"set": true}));
        merge(&mut target, &json!({"a": 1}), Some(Shown { plain: &claims, masked: &claims }));
        assert_eq!(target, json!({"set": true, "a": 1}));
    }
}
