//! The engine that scripts run in, and its bounds.
//!
//! Not here: what a hook gets and returns (`request`, `response`), the functions we offer (`functions`).
//! Holds: no I/O, no `eval`, no `import`, no output; a call ends at [`CALL_TIME_MAX`] and at each bound below, without a
//! way to catch that; no panic of the engine gets out. A value that could hide others from the size checks (a
//! closure's captured variable, a curried argument) cannot be made.

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

/// The longest time of one call.
pub const CALL_TIME_MAX: Duration = Duration::from_millis(250);
/// The most operations of one call; Rhai counts about one for each node of an expression.
const OPERATIONS_MAX: u64 = 100_000;
/// The most script functions that wait for each other.
const CALL_DEPTH_MAX: usize = 16;
/// The most levels of one expression, inside a function and outside.
const EXPRESSION_DEPTH_MAX: usize = 32;
/// The most items of the arrays and bytes of the blobs in one value, all together.
const ARRAY_ITEMS_MAX: usize = 1024;
/// The most entries of the maps in one value, all together.
const MAP_ENTRIES_MAX: usize = 256;
/// The most variables of one function.
const VARIABLES_MAX: usize = 64;
/// The most functions of a script.
const FUNCTIONS_MAX: usize = 64;

/// The most bytes of all variables of one function, counted every [`WEIGHED_EVERY`] uses of a variable.
const VARIABLES_BYTES_MAX: usize = 4 * 1024 * 1024;
const WEIGHED_EVERY: u32 = 16;
/// What a value counts beside the bytes that it holds.
const VALUE_BYTES: usize = 64;

/// What every call's engine is made of: an engine lives for one call, since its clocks are the call's.
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
            // The last one registered is asked first, so ours take the place of some above.
            Arc::new(functions::module()),
        ];
        Sandbox { library: library.into() }
    }

    /// # Errors
    /// What does not parse, goes over a bound, or stands outside of a function.
    pub fn compile(&self, source: &str) -> Result<AST, ScriptError> {
        let mut engine = self.engine();
        let compiled = catch_unwind(AssertUnwindSafe(|| engine.compile(source)));
        let ast = compiled.map_err(|_| ScriptError::nowhere("cannot be compiled"))??;
        // The first statement at top level ends at its first operation, and nothing else has one.
        engine.on_progress(|_| Some(Dynamic::UNIT));
        let ran = catch_unwind(AssertUnwindSafe(|| engine.run_ast(&ast)));
        let at = match ran {
            Ok(Ok(())) => return Ok(ast.clone_functions_only()),
            Ok(Err(error)) => error.position(),
            Err(_) => rhai::Position::NONE,
        };
        let message = "has a statement outside of its functions; move it into one (a constant: `fn name() { value }`)";
        Err(ScriptError::at(at, message))
    }

    /// Calls `function` of `ast`; `now` is what the script's `now()` returns, in seconds.
    ///
    /// # Errors
    /// What the script threw, what went wrong in it, and the bound that it met.
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
            weigh_variables(&mut engine);
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

/// Rhai checks the size of what is assigned to `map[key]` or `array[index]`, and not of the whole: a loop would fill the
/// memory before its time is over.
#[expect(deprecated, reason = "marked as volatile, not as going away")]
fn weigh_variables(engine: &mut Engine) {
    let uses = AtomicU32::new(0);
    engine.on_var(move |_, _, context| {
        if uses.fetch_add(1, Ordering::Relaxed).is_multiple_of(WEIGHED_EVERY) {
            let mut left = VARIABLES_BYTES_MAX;
            let fits = context.scope().iter_raw().all(|(_, _, value)| weigh(value, &mut left));
            if !fits || context.this_ptr().is_some_and(|value| !weigh(value, &mut left)) {
                let what = "The variables of a function are".into();
                return Err(EvalAltResult::ErrorDataTooLarge(what, rhai::Position::NONE).into());
            }
        }
        Ok(None)
    });
}

/// Takes the bytes of `value` off `left`; false when there are too few, or an array or a map has grown over its bound.
fn weigh(value: &Dynamic, left: &mut usize) -> bool {
    let own =
        value.as_immutable_string_ref().map_or(0, |text| text.len()) + value.as_blob_ref().map_or(0, |blob| blob.len());
    let Some(rest) = left.checked_sub(VALUE_BYTES + own) else { return false };
    *left = rest;
    let fits_array = value
        .as_array_ref()
        .map_or(true, |items| items.len() <= ARRAY_ITEMS_MAX && items.iter().all(|item| weigh(item, left)));
    fits_array
        && value
            .as_map_ref()
            .map_or(true, |map| map.len() <= MAP_ENTRIES_MAX && map.values().all(|item| weigh(item, left)))
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").finish_non_exhaustive()
    }
}
