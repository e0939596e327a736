package tffperfedavg

import java.io.Closeable
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.json.JSONObject

/** What became of an adaptation: losses are those of the examples held back. */
class Adaptation(val lossBefore: Float, val lossAfter: Float, val adopted: Int?)

/**
 * A user's model over its versions: examples, weights and what is in use, in a directory
 * of the user's own. A port of `tff_perfedavg/ondevice/personal.py`.
 *
 * `state.json` names the files in use and is replaced whole: a process that is killed at
 * any moment leaves what was in use before or what is in use after it. Calls wait for
 * each other; use one object for a directory.
 *
 * @param shipped the file that the app has now. It comes into use where there is none,
 *     where it holds the same model and where the user has taught nothing; another
 *     version waits for `adapt`.
 * @param open a runtime: `{ InterpreterRuntime(it) }` or `{ CompiledRuntime(it) }`.
 */
class PersonalModel(
    private val directory: File,
    shipped: File,
    capacity: Int? = null,
    private val open: (File) -> Runtime
) : Closeable {
    private var model: ModelFile
    private var runtime: Runtime
    private var state: JSONObject
    private val examples: Examples

    init {
        directory.mkdirs()
        val given = ModelFile(shipped)
        val stateFile = File(directory, STATE)
        state = if (stateFile.exists()) JSONObject(stateFile.readText()) else fresh(given)
        if (!stateFile.exists()) write(state)
        model = ModelFile(File(directory, state.getString("model")))
        runtime = open(model.file)
        weightsOf(state)?.let { set(runtime, it) }
        examples = Examples(capacity ?: 10 * model.batchSize, model.rowLength, model.classes)
        File(directory, EXAMPLES).let { if (it.exists()) examples.load(it) }
        offer(given)
        removeStrays()
    }

    val version: Int get() = model.version
    val card: JSONObject get() = model.card

    /** Probabilities `[classes]` for the features of one row. */
    @Synchronized
    fun infer(x: FloatArray): FloatArray = infer(runtime, model, x)

    /** Keeps an example; `adapt` learns from it. */
    @Synchronized
    fun add(x: FloatArray, label: Int) {
        examples.add(x, label)
        examples.save(File(directory, EXAMPLES))
    }

    /**
     * Adapts the initial model to all examples, and a waiting version with it. The weights
     * in use are never worse on the examples held back than they were. `isStopped` is
     * looked at between the calls of the runtime; once it is true all stays as it was.
     */
    @Synchronized
    fun adapt(learningRate: Float? = null, isStopped: () -> Boolean = { false }): Adaptation {
        val learn = examples.toLearn()
        val check = examples.toCheck()
        check(learn.isNotEmpty() && check.isNotEmpty()) {
            "${learn.size} examples to learn from, ${check.size} to check on: add two of a class"
        }
        val before = loss(runtime, model, check)
        val own = get(runtime, model)
        var best = before
        var chosen: Pair<ModelFile, List<FloatArray>>? = null
        try {
            reset(runtime)
            guarded(runtime, model, learn, check, learningRate, isStopped)
            val after = loss(runtime, model, check)
            if (after <= best) {
                best = after
                chosen = Pair(model, get(runtime, model))
            }
        } finally {
            set(runtime, own)
        }
        if (!state.isNull("candidate")) {
            val file = ModelFile(File(directory, state.getString("candidate")))
            open(file.file).use { other ->
                guarded(other, file, learn, check, learningRate, isStopped)
                val after = loss(other, file, check)
                if (after <= best) {
                    best = after
                    chosen = Pair(file, get(other, file))
                }
            }
        }
        if (isStopped()) return Adaptation(before, before, null)
        val (file, weights) = chosen ?: return Adaptation(before, before, null)
        val isNew = file !== model
        use(file, weights)
        return Adaptation(before, best, if (isNew) file.version else null)
    }

    /** Removes the examples, and puts the initial weights back. */
    @Synchronized
    fun forget() {
        write(JSONObject(state.toString()).put("weights", JSONObject.NULL))
        reset(runtime)
        examples.clear()
        File(directory, EXAMPLES).delete()
        removeStrays()
    }

    @Synchronized
    override fun close() = runtime.close()

    private fun fresh(given: ModelFile) = JSONObject()
        .put("format", 1)
        .put("model", keep("model", given.content, "tflite"))
        .put("weights", JSONObject.NULL)
        .put("candidate", JSONObject.NULL)

    private fun offer(given: ModelFile) {
        val name = "model-${Files.name(given.content)}.tflite"
        if (name == state.getString("model")) return
        require(given.family == model.family && given.rowLength == model.rowLength &&
            given.classes == model.classes) { "${given.file} is of another family or shape" }
        require(given.version >= model.version) {
            "${given.file} is version ${given.version}; ${model.version} is in use"
        }
        keep("model", given.content, "tflite")
        val isSame = given.modelId == model.modelId
        val isUntaught = state.isNull("weights") && examples.size == 0
        if (!isSame && !isUntaught) {
            write(JSONObject(state.toString()).put("candidate", name))
            return
        }
        val file = ModelFile(File(directory, name))
        val next = open(file.file)
        if (isSame) set(next, get(runtime, model))
        write(JSONObject(state.toString()).put("model", name).put("candidate", JSONObject.NULL))
        runtime.close()
        runtime = next
        model = file
    }

    private fun use(file: ModelFile, weights: List<FloatArray>) {
        val content = ByteBuffer.allocate(4 * weights.map { it.size }.sum()).order(ByteOrder.LITTLE_ENDIAN)
        weights.forEach { weight -> weight.forEach { content.putFloat(it) } }
        val next = JSONObject(state.toString())
            .put("weights", keep("weights", Files.sealed(content.array()), "bin"))
        if (file !== model) {
            next.put("model", file.file.name).put("candidate", JSONObject.NULL)
        }
        write(next)
        if (file !== model) {
            val opened = open(file.file)
            runtime.close()
            runtime = opened
            model = file
        }
        set(runtime, weights)
        removeStrays()
    }

    private fun weightsOf(state: JSONObject): List<FloatArray>? {
        if (state.isNull("weights")) return null
        val content = ByteBuffer.wrap(Files.unsealed(File(directory, state.getString("weights"))))
            .order(ByteOrder.LITTLE_ENDIAN)
        require(content.remaining() == 4 * model.weightSizes.sum()) { "weights of another model" }
        return model.weightSizes.map { size -> FloatArray(size) { content.float } }
    }

    private fun keep(kind: String, content: ByteArray, ending: String): String {
        val name = "$kind-${Files.name(content)}.$ending"
        Files.write(File(directory, name), content)
        return name
    }

    private fun write(next: JSONObject) {
        Files.write(File(directory, STATE), next.toString().toByteArray())
        state = next
    }

    private fun removeStrays() {
        val used = listOf("model", "weights", "candidate").map { state.optString(it) }
        directory.listFiles()
            ?.filter { it.name.startsWith("model-") || it.name.startsWith("weights-") }
            ?.filter { it.name !in used }?.forEach { it.delete() }
    }

    private companion object {
        const val STATE = "state.json"
        const val EXAMPLES = "examples.bin"
    }
}

/** Probabilities for one row; finite, or an error. */
internal fun infer(runtime: Runtime, model: ModelFile, x: FloatArray): FloatArray {
    require(x.size == model.rowLength) { "x has ${x.size} numbers, not ${model.rowLength}" }
    val padded = x.copyOf(model.rowLength * model.inferBatchSize)
    val answer = runtime.run(
        "infer", mapOf("x" to padded),
        floatOutputs = mapOf("probabilities" to model.classes * model.inferBatchSize)
    )["probabilities"] as FloatArray
    val own = answer.copyOf(model.classes)
    check(own.all { it == it }) { "the answer is not finite: scale x as in training" }
    return own
}

/** Steps on rows to learn from, as far as they help those to check on. */
internal fun guarded(
    runtime: Runtime, model: ModelFile, learn: List<Example>, check: List<Example>,
    learningRate: Float?, isStopped: () -> Boolean
) {
    val count = (learn.size + model.batchSize - 1) / model.batchSize
    val batches = learn.chunked((learn.size + count - 1) / count)
    val most = model.mostGuardedSteps
    val rate = learningRate ?: model.learningRate
    require(rate > 0f && rate < Float.POSITIVE_INFINITY) { "the learning rate is $rate" }
    if (batches.size == 1) {
        call(runtime, model, learn, check, rate, most)
    } else {
        for (step in 0 until most) {
            if (isStopped()) return
            call(runtime, model, batches[step % batches.size], check, rate, 1)
        }
    }
}

/** The mean loss of rows, a batch at a time. */
internal fun loss(runtime: Runtime, model: ModelFile, rows: List<Example>): Float =
    rows.chunked(model.batchSize)
        .map { it.size * call(runtime, model, it, it, 1f, 0) }.sum() / rows.size

/** `adapt_guarded`; returns the loss on the rows to check before the first step. */
private fun call(
    runtime: Runtime, model: ModelFile, learn: List<Example>, check: List<Example>,
    rate: Float, steps: Int
): Float {
    val floats = HashMap<String, FloatArray>()
    val ints = HashMap<String, IntArray>()
    for ((suffix, rows) in listOf(Pair("", learn), Pair("_check", check))) {
        val x = FloatArray(model.batchSize * model.rowLength)
        val y = IntArray(model.batchSize) { -1 }    // -1 is padding.
        rows.take(model.batchSize).forEachIndexed { i, row ->
            row.x.copyInto(x, i * model.rowLength)
            y[i] = row.label
        }
        floats["x$suffix"] = x
        ints["y$suffix"] = y
    }
    floats["learning_rate"] = floatArrayOf(rate)
    ints["num_steps"] = intArrayOf(steps)
    val found = runtime.run(
        "adapt_guarded", floats, ints, floatOutputs = mapOf("loss_before" to 1)
    )
    return (found["loss_before"] as FloatArray)[0]
}

private val UNUSED = mapOf("unused" to floatArrayOf(0f))

internal fun reset(runtime: Runtime) {
    runtime.run("reset", UNUSED, intOutputs = mapOf("done" to 1))
}

internal fun get(runtime: Runtime, model: ModelFile): List<FloatArray> {
    val sizes = model.weightSizes.withIndex().associate { (i, size) -> "weight_$i" to size }
    val found = runtime.run("get_weights", UNUSED, floatOutputs = sizes)
    return model.weightSizes.indices.map { found["weight_$it"] as FloatArray }
}

internal fun set(runtime: Runtime, weights: List<FloatArray>) {
    val named = weights.withIndex().associate { (i, weight) -> "weight_$i" to weight }
    val done = runtime.run("set_weights", named, intOutputs = mapOf("done" to 1))["done"]
    check((done as IntArray)[0] == 1) { "a weight is not a finite number" }
}
