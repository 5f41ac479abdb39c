//! The token before it stands behind its door: asked in a thread of its own, so that one that hangs holds
//! up nobody.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time::sleep};

use super::fault::Fault;
use crate::hsm::{Config, pkcs11};

/// So many times what one call may take, and it hangs: a step is some calls.
const CALLS_A_STEP: u32 = 4;
/// Making a pair of RSA keys takes this long where tokens are slow.
const MAKING_KEYS: Duration = Duration::from_secs(60);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(20);

/// A token that is asked for something that takes many calls.
pub(super) struct Asked {
    label: String,
    module: PathBuf,
    /// Without a step for as long, it hangs.
    silence_max: Duration,
}

impl Asked {
    /// The token of this configuration.
    pub(super) fn of(config: &Config) -> Self {
        Self {
            label: config.token_label.clone(),
            module: config.module.clone(),
            silence_max: config.call_timeout * CALLS_A_STEP,
        }
    }

    /// The same, where keys are made.
    pub(super) fn making_keys(mut self) -> Self {
        self.silence_max = self.silence_max.max(MAKING_KEYS);
        self
    }

    /// The outcome of `work`, or that the token hangs: then its thread is left to itself.
    pub(super) async fn to<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let (done, mut answer) = oneshot::channel();
        thread::Builder::new()
            .name("token".to_owned())
            .spawn(move || done.send(work()).is_ok())
            .map_err(|error| Fault::Runtime(error.into()))?;
        let mut last = (pkcs11::steps(), Instant::now());
        loop {
            tokio::select! {
                outcome = &mut answer => {
                    return outcome.map_err(|_| Fault::Runtime("the token's thread panicked".into()));
                }
                () = sleep(LOOK) => {}
            }
            let steps = pkcs11::steps();
            if steps != last.0 {
                last = (steps, Instant::now());
            } else if last.1.elapsed() >= self.silence_max {
                return Err(self.hangs());
            }
        }
    }

    fn hangs(&self) -> Fault {
        let Self { label, module, silence_max } = self;
        let sentence = format!(
            "token `{label}` behind {} has not answered for {} s ({CALLS_A_STEP} times \
             hsm.call_timeout_ms, at least): see whether it, or the server that it is reached through, \
             hangs",
            module.display(),
            silence_max.as_secs_f32(),
        );
        // It may answer the next time.
        Fault::Away(sentence.into())
    }
}
