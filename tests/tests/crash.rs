//! kill -9 in the middle of fills: what is served afterwards is right to the last byte.

use caje_tests::{End, Folder, Origin, OriginAnswer, Program};

const SIZE: u64 = 5 << 20;

async fn start(origin: &Origin, folder: &Folder) -> Program {
    let (store, url) = (folder.join("store").display().to_string(), origin.url());
    let arguments = [
        "proxy",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--memory",
        "16MiB",
    ];
    Program::start(&[&arguments[..], &["--origin", &url, "--data-dir", &store]].concat()).await
}

#[tokio::test]
async fn no_wrong_byte_after_kill_9() {
    let origin = Origin::start().await;
    let folder = Folder::new();
    for n in 0..6 {
        let route = origin
            .get(&format!("/whole/{n}"))
            .generated(SIZE)
            .cache_control("max-age=600");
        let _ = if n % 2 == 0 {
            route.etag("\"1\"").ranges(true)
        } else {
            route
        };
    }
    for round in 0..4 {
        let program = start(&origin, &folder).await;
        // What is whole, and what was under way when the process died.
        for n in 0..6 {
            let target = format!("/whole/{n}");
            program.get(&target).await.is_whole(&target, SIZE);
        }
        let mut under_way = Vec::new();
        for n in 0..6 {
            let target = format!("/half/{round}/{n}");
            let route = origin
                .get(&target)
                .generated(SIZE)
                .cache_control("max-age=600");
            let route = if n % 2 == 0 {
                route.etag("\"1\"").ranges(true)
            } else {
                route
            };
            let route = if n % 3 == 0 { route.chunked() } else { route };
            let _gate = route.gated_at(SIZE / 6 * (n + 1) - 1);
            let mut answer = program.get(&target).open().await;
            answer.take((SIZE / 6 * (n + 1) - 1) as usize).await;
            under_way.push(answer);
        }
        program.kill().await;
        for answer in under_way {
            assert_eq!(answer.rest().await.end, End::Cut);
        }
        let program = start(&origin, &folder).await;
        for earlier in 0..=round {
            for n in 0..6 {
                let target = format!("/half/{earlier}/{n}");
                let answer = OriginAnswer::ok()
                    .generated(SIZE)
                    .cache_control("max-age=600");
                let answer = if n % 2 == 0 {
                    answer.etag("\"1\"").ranges(true)
                } else {
                    answer
                };
                origin.get(&target).answer(answer);
                program.get(&target).await.is_whole(&target, SIZE);
                let got = program.get(&target).range("1000000-1999999").await;
                got.is_part(&target, 1_000_000..2_000_000, SIZE);
            }
        }
        for n in 0..6 {
            let target = format!("/whole/{n}");
            program.get(&target).await.is_whole(&target, SIZE);
        }
        program.kill().await;
    }
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
}

/// What had been flushed is a hit after the crash: the cache is not lost with the process.
#[tokio::test]
async fn a_crash_loses_little() {
    let origin = Origin::start().await;
    let folder = Folder::new();
    let program = start(&origin, &folder).await;
    let target = "/bytes/1m/kept";
    program.get(target).await.is_whole(target, 1 << 20);
    // The index is written behind; its commits are counted nowhere outside, but unwritten bytes are.
    let deadline = tokio::time::Instant::now() + caje_tests::PATIENCE;
    loop {
        let text = program.admin("/metrics").await.expect(200).text();
        let zero = |series: &str| text.lines().any(|line| line == format!("{series} 0"));
        let written = !zero("caje_store_writes_total") && zero("caje_store_unwritten_bytes");
        if written {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "nothing is written: {text}"
        );
    }
    program.kill().await;
    let program = start(&origin, &folder).await;
    program.get(target).await.is_whole(target, 1 << 20);
    assert!(origin.requests(target) <= 2);
}

async fn sampled(program: &Program, series: &str) -> f64 {
    let text = program.admin("/metrics").await.expect(200).text();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("no {series}"))
        .parse()
        .expect("a number")
}

/// 2,000 clients that disconnect in the middle of a miss leave descriptors and tasks where they were.
#[tokio::test]
async fn two_thousand_clients_that_leave_cost_nothing() {
    let origin = Origin::start().await;
    let gate = origin
        .prefix("/leave")
        .generated(1 << 20)
        .cache_control("max-age=60")
        .gated_at(1000);
    origin.get("/warm").body("x").cache_control("max-age=60");
    let folder = Folder::new();
    let path = folder.join("caje.toml");
    let text = format!(
        "[node]\nlisten = \"127.0.0.1:0\"\nthreads = 2\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [store]\ndir = \"{}\"\nsize = \"256MiB\"\nmemory = \"16MiB\"\n[log]\naccess = \"off\"\n\
         [limits]\nlinger = \"10ms\"\n\
         [[origin]]\nname = \"main\"\nurl = \"{}\"\nidle_timeout = \"100ms\"\n",
        folder.join("store").display(),
        origin.url()
    );
    std::fs::write(&path, text).expect("write a file");
    let program = Program::start(&["run", "--config", &path.display().to_string()]).await;
    program.get("/warm").await.says("x");
    assert!(program.get("/warm").await.says("x").head.is_hit());
    origin.wait_open_connections(0).await;
    let descriptors = sampled(&program, "process_open_fds").await;
    let tasks = sampled(&program, "caje_tasks").await;
    for round in 0..10 {
        let mut answers = Vec::new();
        for n in 0..200 {
            let mut answer = program
                .get(&format!("/leave/{round}/{}", n / 2))
                .open()
                .await;
            answer.take(1000).await;
            answers.push(answer);
        }
        answers.into_iter().for_each(caje_tests::Answer::leave);
    }
    origin.wait_open_connections(0).await;
    let deadline = tokio::time::Instant::now() + caje_tests::PATIENCE;
    loop {
        let open = sampled(&program, "process_open_fds").await;
        let live = sampled(&program, "caje_tasks").await;
        // A segment of the store may have been opened meanwhile, by each thread that uses it.
        if open <= descriptors + 4.0 && live <= tasks {
            break;
        }
        let late = tokio::time::Instant::now() > deadline;
        assert!(
            !late,
            "{open} descriptors after {descriptors}, {live} tasks after {tasks}"
        );
    }
    gate.open();
    program
        .get("/leave/0/0")
        .await
        .is_whole("/leave/0/0", 1 << 20);
}
