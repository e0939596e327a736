package tffperfedavg

import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import java.io.File

/**
 * LiteRT 2.x: `com.google.ai.edge.litert:litert:2.1.0` and later.
 *
 * On the processor: training changes variables, which other accelerators do not have.
 */
class CompiledRuntime(file: File) : Runtime {
    private val model = CompiledModel.create(file.path, CompiledModel.Options(Accelerator.CPU), null)

    override fun run(
        signature: String,
        floats: Map<String, FloatArray>,
        ints: Map<String, IntArray>,
        floatOutputs: Map<String, Int>,
        intOutputs: Map<String, Int>
    ): Map<String, Any> {
        val inputs = LinkedHashMap<String, TensorBuffer>()
        val outputs = LinkedHashMap<String, TensorBuffer>()
        try {
            floats.forEach { (name, values) ->
                inputs[name] = model.createInputBuffer(name, signature).apply { writeFloat(values) }
            }
            ints.forEach { (name, values) ->
                inputs[name] = model.createInputBuffer(name, signature).apply { writeInt(values) }
            }
            // All of a signature's outputs are needed, those not asked for, too.
            for (name in OUTPUTS.getValue(signature) + floatOutputs.keys + intOutputs.keys) {
                outputs.getOrPut(name) { model.createOutputBuffer(name, signature) }
            }
            model.run(inputs, outputs, signature)
            val found = HashMap<String, Any>()
            floatOutputs.keys.forEach { found[it] = outputs.getValue(it).readFloat() }
            intOutputs.keys.forEach { found[it] = outputs.getValue(it).readInt() }
            return found
        } finally {
            (inputs.values + outputs.values).forEach { it.close() }
        }
    }

    override fun close() = model.close()

    private companion object {
        val OUTPUTS = mapOf(
            "infer" to listOf("probabilities"),
            "adapt_guarded" to listOf("loss_before", "loss_after", "steps_kept", "applied", "losses"),
            "reset" to listOf("done"),
            "set_weights" to listOf("done"),
            "get_weights" to emptyList()
        )
    }
}
