import Martlet
import Testing

/// Against transformers 5.23.0 `get_scheduler`, peak 2e-4: the rate of every step, two steps beyond the end.
@Suite struct ScheduleTests {
    struct Case: Sendable {
        var type: Recipe.SchedulerType
        var warmup: Int
        var total: Int
        var rates: [Double]
    }

    @Test(arguments: goldenSchedules) func agreesWithTransformers(_ golden: Case) {
        let schedule = Schedule(type: golden.type, peak: 2e-4, warmupSteps: golden.warmup, totalSteps: golden.total)
        for (index, rate) in golden.rates.enumerated() {
            #expect(abs(schedule.learningRate(at: index) - rate) <= 1e-12 * 2e-4, "step \(index)")
        }
    }

    @Test func ratioRoundsUp() {
        var recipe = Recipe(model: "m", dataset: ["d"])
        recipe.warmupRatio = 0.03
        #expect(Schedule(recipe, totalSteps: 101).warmupSteps == 4)
        recipe.warmupRatio = 0
        recipe.warmupSteps = 7
        #expect(Schedule(recipe, totalSteps: 101).warmupSteps == 7)
    }
}

// Made by torch.optim.AdamW(lr=2e-4) under transformers.get_scheduler(type, num_warmup_steps, num_training_steps).
private let goldenSchedules: [ScheduleTests.Case] = [
    .init(
        type: .constant, warmup: 0, total: 3,
        rates: [
            0.0002, 0.0002, 0.0002, 0.0002, 0.0002,
        ]),
    .init(
        type: .constantWithWarmup, warmup: 3, total: 6,
        rates: [
            0.0, 6.666666666666667e-05, 0.00013333333333333334, 0.0002, 0.0002, 0.0002, 0.0002, 0.0002,
        ]),
    .init(
        type: .linear, warmup: 0, total: 10,
        rates: [
            0.0002, 0.00018, 0.00016, 0.00014, 0.00012, 0.0001, 8e-05, 6e-05, 4e-05, 2e-05, 0.0, 0.0,
        ]),
    .init(
        type: .linear, warmup: 3, total: 10,
        rates: [
            0.0, 6.666666666666667e-05, 0.00013333333333333334, 0.0002, 0.00017142857142857143,
            0.00014285714285714287, 0.00011428571428571428, 8.571428571428571e-05, 5.714285714285714e-05,
            2.857142857142857e-05, 0.0, 0.0,
        ]),
    .init(
        type: .linear, warmup: 10, total: 10,
        rates: [
            0.0, 2e-05, 4e-05, 6e-05, 8e-05, 0.0001, 0.00012, 0.00014, 0.00016, 0.00018, 0.0, 0.0,
        ]),
    .init(
        type: .linear, warmup: 7, total: 5,
        rates: [
            0.0, 2.857142857142857e-05, 5.714285714285714e-05, 8.571428571428571e-05, 0.00011428571428571428,
            0.00014285714285714287, 0.00017142857142857143,
        ]),
    .init(
        type: .cosine, warmup: 0, total: 10,
        rates: [
            0.0002, 0.00019510565162951537, 0.00018090169943749476, 0.00015877852522924732, 0.00013090169943749476,
            0.0001, 6.909830056250527e-05, 4.12214747707527e-05, 1.9098300562505266e-05, 4.8943483704846475e-06,
            0.0, 4.8943483704846475e-06,
        ]),
    .init(
        type: .cosine, warmup: 3, total: 10,
        rates: [
            0.0, 6.666666666666667e-05, 0.00013333333333333334, 0.0002, 0.0001900968867902419,
            0.00016234898018587337, 0.00012225209339563145, 7.774790660436858e-05, 3.7651019814126654e-05,
            9.903113209758096e-06, 0.0, 9.903113209758086e-06,
        ]),
    .init(
        type: .cosine, warmup: 4, total: 25,
        rates: [
            0.0, 5e-05, 0.0001, 0.00015000000000000001, 0.0002, 0.00019888308262251285, 0.0001955572805786141,
            0.0001900968867902419, 0.0001826238774315995, 0.00017330518718298264, 0.00016234898018587337,
            0.00015000000000000001, 0.00013653410243663952, 0.00012225209339563145, 0.00010747300935864243,
            9.252699064135758e-05, 7.774790660436858e-05, 6.34658975633605e-05, 5.000000000000002e-05,
            3.7651019814126654e-05, 2.669481281701739e-05, 1.7376122568400532e-05, 9.903113209758096e-06,
            4.442719421385922e-06, 1.1169173774871478e-06, 0.0, 1.1169173774871478e-06,
        ]),
    .init(
        type: .cosine, warmup: 10, total: 10,
        rates: [
            0.0, 2e-05, 4e-05, 6e-05, 8e-05, 0.0001, 0.00012, 0.00014, 0.00016, 0.00018, 0.0002, 0.0,
        ]),
]
