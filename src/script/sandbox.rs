//! The engine that runs scripts, and its resource bounds.
//!
//! Not here: arguments and results of a hook (`request`, `response`), the functions offered (`functions`).
//! Invariants: no I/O, no `eval`, no `import`, no output; a call ends at [`CALL_TIME_MAX`] and at each bound below,
//! which a script cannot catch; a panic of the engine is contained. A script cannot create a value that hides others
//! from the size checks (a captured variable of a closure, a curried argument).

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rhai::packages::{
    ArithmeticPackage, BasicArrayPackage, BasicBlobPackage, BasicFnPackage, BasicIteratorPackage, BasicMapPackage,
    BasicMathPackage, BasicStringPackage, LogicPackage, MoreStringPackage, Package,
};
use rhai::{AST, CallFnOptions, Dynamic, Engine, EvalAltResult, Module, OptimizationLevel, Scope};

use super::failure::{Failure, ScriptError};
use super::functions;
use super::value::STRING_BYTES_MAX;
use crate::model::time::WallTime;

/// Time limit of one call.
pub const CALL_TIME_MAX: Duration = Duration::from_millis(250);
/// Maximum number of operations per call; Rhai counts about one per expression node.
const OPERATIONS_MAX: u64 = 100_000;
/// Maximum depth of nested function calls.
const CALL_DEPTH_MAX: usize = 16;
/// Maximum nesting of an expression, inside a function and outside.
const EXPRESSION_DEPTH_MAX: usize = 32;
/// Maximum total of array items and blob bytes in one value.
const ARRAY_ITEMS_MAX: usize = 1024;
/// Maximum total of map entries in one value.
const MAP_ENTRIES_MAX: usize = 256;
/// Maximum number of variables per function.
const VARIABLES_MAX: usize = 64;
/// Maximum number of functions per script.
const FUNCTIONS_MAX: usize = 64;

/// Maximum total size of a function's variables, checked every [`VARIABLE_USES_PER_CHECK`] variable accesses.
const VARIABLES_BYTES_MAX: usize = 4 * 1024 * 1024;
const VARIABLE_USES_PER_CHECK: u32 = 16;
/// Overhead per value, in addition to the bytes that it holds.
const VALUE_BYTES: usize = 64;

/// Builds one engine per call, since deadline and `now()` differ per call.
#[derive(Clone)]
pub struct Sandbox {
    library: Arc<[Arc<Module>]>,
}

impl Sandbox {
    pub fn new() -> Sandbox {
        // `LanguageCorePackage` (sleep, exit) and `BitFieldPackage` are left out.
        let library = [
            ArithmeticPackage::new().as_shared_module(),
            BasicStringPackage::new().as_shared_module(),
            BasicIteratorPackage::new().as_shared_module(),
            BasicFnPackage::new().as_shared_module(),
            LogicPackage::new().as_shared_module(),
            BasicMathPackage::new().as_shared_module(),
            BasicArrayPackage::new().as_shared_module(),
            BasicBlobPackage::new().as_shared_module(),
            BasicMapPackage::new().as_shared_module(),
            MoreStringPackage::new().as_shared_module(),
            // The module registered last has precedence, so ours override some of the above.
            Arc::new(functions::module()),
        ];
        Sandbox { library: library.into() }
    }

    /// # Errors
    /// A syntax error, an exceeded bound, or a statement outside of a function.
    pub fn compile(&self, source: &str) -> Result<AST, ScriptError> {
        let mut engine = self.engine();
        let compiled = catch_unwind(AssertUnwindSafe(|| engine.compile(source)));
        let ast = compiled.map_err(|_| ScriptError::without_position("cannot be compiled"))??;
        // Any operation now aborts the run, and only a top-level statement has one.
        engine.on_progress(|_| Some(Dynamic::UNIT));
        let ran = catch_unwind(AssertUnwindSafe(|| engine.run_ast(&ast)));
        let at = match ran {
            Ok(Ok(())) => return Ok(ast.clone_functions_only()),
            Ok(Err(error)) => error.position(),
            Err(_) => rhai::Position::NONE,
        };
        let message = "has a statement outside of a function; move it into one (a constant: `fn name() { value }`)";
        Err(ScriptError::at(at, message))
    }

    /// Calls `function` of `ast`; the script's `now()` returns `now` in seconds.
    ///
    /// # Errors
    /// An exception or error of the script, or an exceeded bound.
    pub fn call(
        &self,
        ast: &AST,
        function: &str,
        arguments: impl rhai::FuncArgs,
        now: WallTime,
    ) -> Result<Dynamic, Failure> {
        let called = catch_unwind(AssertUnwindSafe(|| {
            let mut engine = self.engine();
            let deadline = Instant::now() + CALL_TIME_MAX;
            engine.on_progress(move |_| (Instant::now() >= deadline).then_some(Dynamic::UNIT));
            limit_variable_size(&mut engine);
            let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            engine.register_fn("now", move || now);
            let options = CallFnOptions::new().eval_ast(false);
            engine.call_fn_with_options::<Dynamic>(options, &mut Scope::new(), ast, function, arguments)
        }));
        let called: Result<Dynamic, Box<EvalAltResult>> = called.map_err(|_| Failure::error("the engine failed"))?;
        called.map_err(|error| Failure::from_error(&error))
    }

    fn engine(&self) -> Engine {
        let mut engine = Engine::new_raw();
        for module in self.library.iter() {
            engine.register_global_module(module.clone());
        }
        engine
            .set_optimization_level(OptimizationLevel::None)
            .set_strict_variables(true)
            .set_max_operations(OPERATIONS_MAX)
            .set_max_call_levels(CALL_DEPTH_MAX)
            .set_max_expr_depths(EXPRESSION_DEPTH_MAX, EXPRESSION_DEPTH_MAX)
            .set_max_string_size(STRING_BYTES_MAX)
            .set_max_array_size(ARRAY_ITEMS_MAX)
            .set_max_map_size(MAP_ENTRIES_MAX)
            .set_max_variables(VARIABLES_MAX)
            .set_max_functions(FUNCTIONS_MAX)
            .disable_symbol("eval")
            .disable_symbol("curry");
        engine
    }
}

/// Rhai checks the size of a value assigned to `map[key]` or `array[index]`, not of the whole container: a loop could
/// exhaust memory before the time limit.
#[expect(deprecated, reason = "the deprecation marks an unstable API, not one to be removed")]
fn limit_variable_size(engine: &mut Engine) {
    let uses = AtomicU32::new(0);
    engine.on_var(move |_, _, context| {
        if uses.fetch_add(1, Ordering::Relaxed).is_multiple_of(VARIABLE_USES_PER_CHECK) {
            let mut left = VARIABLES_BYTES_MAX;
            let fits = context.scope().iter_raw().all(|(_, _, value)| charge_size(value, &mut left));
            if !fits || context.this_ptr().is_some_and(|value| !charge_size(value, &mut left)) {
                let what = "The variables of a function are".into();
                return Err(EvalAltResult::ErrorDataTooLarge(what, rhai::Position::NONE).into());
            }
        }
        Ok(None)
    });
}

/// Subtracts the size of `value` from `left`; false if `left` is too small, or an array or map exceeds its bound.
fn charge_size(value: &Dynamic, left: &mut usize) -> bool {
    let bytes =
        value.as_immutable_string_ref().map_or(0, |text| text.len()) + value.as_blob_ref().map_or(0, |blob| blob.len());
    let Some(rest) = left.checked_sub(VALUE_BYTES + bytes) else { return false };
    *left = rest;
    let fits_array = value
        .as_array_ref()
        .map_or(true, |items| items.len() <= ARRAY_ITEMS_MAX && items.iter().all(|item| charge_size(item, left)));
    fits_array
        && value
            .as_map_ref()
            .map_or(true, |map| map.len() <= MAP_ENTRIES_MAX && map.values().all(|item| charge_size(item, left)))
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").finish_non_exhaustive()
    }
}
