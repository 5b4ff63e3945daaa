//! Engines that are told to stop.

use muster_tests::{Engine, Moment, seed};

use super::{Stack, strike_and_plan};

const VICTIMS: usize = 6;

/// SIGTERM and Ctrl-C: what runs is ended, nothing begins, and the way on is said. Told twice, it ends at once.
pub(crate) fn an_engine_told_to_stop_says_how_to_go_on(stack: Stack, default_seed: u64) {
    let told: [(&str, usize, Option<i32>); 3] =
        [("TERM", 1, Some(3)), ("INT", 1, Some(3)), ("TERM", 2, None)];
    let mut series = stack.series(seed(default_seed), told.len() * VICTIMS);
    series.world.capture();
    series.world.follow();
    for (round, (signal, times, code)) in told.into_iter().enumerate() {
        let (writers, incident) = strike_and_plan(&mut series, VICTIMS);
        let stores = series.stores(&incident);
        let run = format!("told-{round}");
        let mut engine = Engine::start(&series.world, &run, &["apply", "plan.json", "--run", &run]);
        assert!(engine.wait_for(Moment::Staged(1)), "it ended before it was told");
        engine.sleep();
        assert!(!engine.has_reached(Moment::Published(stores)), "it had done all before it was told");
        engine.signal(signal);
        engine.signal("CONT");
        if times == 2 && engine.wait_to_say("stopping after the running steps") {
            engine.signal(signal);
        }
        let ended = engine.finish();
        match code {
            Some(code) => {
                let way = format!("stopped; go on with: muster resume {run}");
                ended.code(code).says(&["stopping after the running steps", &way]);
            }
            // At once, unless the running steps were quicker.
            None => assert!(matches!(ended.code, Some(130 | 3)), "{ended}"),
        }
        series.world.muster(&["status", &run]).ok();
        series.world.muster(&["resume", &run]).ok();
        writers.stop().unwrap();
        series.is_undone(&[&run]);
    }
}
