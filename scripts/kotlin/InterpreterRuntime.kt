package tffperfedavg

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

/** LiteRT 1.x: `com.google.ai.edge.litert:litert:1.4.2`, or TensorFlow Lite itself. */
class InterpreterRuntime(file: File, threads: Int = 1) : Runtime {
    private val interpreter = Interpreter(file, Interpreter.Options().setNumThreads(threads))

    override fun run(
        signature: String,
        floats: Map<String, FloatArray>,
        ints: Map<String, IntArray>,
        floatOutputs: Map<String, Int>,
        intOutputs: Map<String, Int>
    ): Map<String, Any> {
        val inputs = HashMap<String, Any>()
        floats.forEach { (name, values) ->
            inputs[name] = buffer(values.size).apply { asFloatBuffer().put(values) }
        }
        ints.forEach { (name, values) ->
            inputs[name] = buffer(values.size).apply { asIntBuffer().put(values) }
        }
        val outputs = HashMap<String, Any>()
        (floatOutputs + intOutputs).forEach { (name, size) -> outputs[name] = buffer(size) }
        interpreter.runSignature(inputs, outputs, signature)
        val found = HashMap<String, Any>()
        floatOutputs.forEach { (name, size) ->
            val values = FloatArray(size)
            rewound(outputs[name]).asFloatBuffer().get(values)
            found[name] = values
        }
        intOutputs.forEach { (name, size) ->
            val values = IntArray(size)
            rewound(outputs[name]).asIntBuffer().get(values)
            found[name] = values
        }
        return found
    }

    override fun close() = interpreter.close()

    private fun buffer(count: Int): ByteBuffer =
        ByteBuffer.allocateDirect(4 * count).order(ByteOrder.nativeOrder())

    private fun rewound(output: Any?): ByteBuffer = (output as ByteBuffer).apply { rewind() }
}
